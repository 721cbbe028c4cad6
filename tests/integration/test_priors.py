"""What a run computes for its searches before they start, and keeps."""

import math
from pathlib import Path

import numpy as np
from latency_fakes import fake_prices

from automl.config import load_config
from automl.orchestration.searches import make_search, searches, wants_prior
from automl.problem import Problem
from automl.report.data import read_run
from automl.run.directory import write_json
from automl.run.priors import compute_prior, costs_for_prior, kept_prior
from automl.searchers.prior import Prior
from automl.testing.runs import make_run

CONFIG = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "args": {"size": 16}},
    "baseline": {"epochs": 0},
    "space": {"kernel": [3]},
    "budget": [{"metric": "latency_s", "ratio": 0.5}, {"metric": "macs", "ratio": 0.6}],
    "search": {"algorithm": "gradient", "evaluations": 4, "options": {"steps": 3, "batch": 8}},
    "compression": {"reconstruct": False},
}


def test_logits_under_a_latency_budget_lead_to_proposals_within_it(tmp_path: Path) -> None:
    config = load_config(CONFIG)
    assert wants_prior(config.search)
    with fake_prices(tmp_path / "table.sqlite") as prices:
        problem = Problem.build(config, prices=prices)
        made = []

        def compute() -> Prior:
            made.append(compute_prior(problem, problem.compressor(), costs_for_prior(problem, problem.backend)))
            return made[-1]

        file = tmp_path / "prior.json"
        prior = kept_prior(file, compute)
        again = kept_prior(file, compute)
        search = searches(config)[0]
        searcher = make_search(config, problem.space, problem.constraints, search, problem.backend, prior=prior)
        for _ in range(2):
            cost = problem.backend.estimate(problem.graph.apply(searcher.ask())).as_metrics()
            assert all(each.violation(cost) == 0.0 for each in problem.constraints)
    assert len(made) == 1
    assert [len(each) for each in again.values] == problem.space.counts.tolist()
    assert all(
        (one == other).all() and np.ptp(one) > 0.0 for one, other in zip(prior.values, again.values, strict=True)
    )
    assert again.images == 24 + 3 * 3 * 8  # answers of all images, then steps forwards and backwards
    assert math.isfinite(again.seconds)


def test_a_file_that_holds_no_prior_is_written_anew(tmp_path: Path) -> None:
    file = tmp_path / "prior.json"
    for content in (b"", b"[[0.0]]", b'{"values": [[0.0]]}'):
        file.write_bytes(content)
        found = kept_prior(file, lambda: Prior([np.array([1.0, 2.0])], 5, 0.25))
        assert (found.values[0].tolist(), found.images, found.seconds) == ([1.0, 2.0], 5, 0.25)
        known = Prior.read(file)
        assert known is not None
        assert known.values[0].tolist() == [1.0, 2.0]


def test_it_counts_as_the_first_proposal_of_the_searches_that_it_was_computed_for(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", evaluations=4)
    before = read_run(directory.path).efforts
    write_json(directory.prior_file, Prior([np.zeros(2)], images=1000, seconds=2.5).to_json())
    after = read_run(directory.path).efforts
    assert after["ddpg-0"][0].images == before["ddpg-0"][0].images + 1000
    assert after["ddpg-0"][0].seconds == before["ddpg-0"][0].seconds + 2.5
    after["ddpg-0"][0] = before["ddpg-0"][0]
    assert after == before
