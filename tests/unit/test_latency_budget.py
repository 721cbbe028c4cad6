"""A latency budget in figures: what is held back, and which policy is chosen after measuring."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from latency_fakes import LayerBackend, fake_prices

from automl.config import load_config
from automl.costs.latency import LocalPrices
from automl.costs.latency_budget import LatencyBudget, Probe
from automl.costs.table_error import CANDIDATES, check_code, with_chosen_limit, with_margin
from automl.errors import InputError, TrimtabError
from automl.run.finalists import Compiled, Finalist
from automl.testing.problems import cifar_resnet
from search_spaces.channel_space import ChannelSpace
from search_spaces.policy import CompressionPolicy
from search_spaces.space import SearchSpace

SHARE = LatencyBudget(baseline_s=10.0, least_s=1.0, limit_s=5.0, ratio=0.5)
SECONDS = LatencyBudget(baseline_s=10.0, least_s=1.0, limit_s=5.0)


def test_what_the_table_misses_of_all_networks_alike_does_not_matter_under_a_ratio() -> None:
    probes = {"baseline": Probe(10.0, 11.0), "cheapest": Probe(1.0, 1.1), "random-0": Probe(5.0, 5.5)}
    assert SHARE.with_probes(probes).margin == 0.01
    assert SECONDS.with_probes(probes).margin == pytest.approx(0.1)
    assert SECONDS.with_probes(probes).held_back.limit == pytest.approx(5.0 / 1.1)
    small = {**probes, "random-0": Probe(5.0, 5.72)}  # 4 % more than the baseline's share
    assert SHARE.with_probes(small).margin == pytest.approx(0.04)
    generous = {"baseline": Probe(10.0, 9.0), "cheapest": Probe(1.0, 0.8)}  # the table promises too little
    assert SECONDS.with_probes(generous).margin == 0.01


def test_what_the_config_says_is_held_back_and_nothing_where_there_is_no_hard_limit() -> None:
    config = {
        "model": {"name": "resnet20"},
        "data": {"name": "digits"},
        "budget": {"metric": "latency_s", "ratio": 0.5},
    }
    assert LatencyBudget.of(load_config(config), 10.0, 1.0) == SHARE
    assert LatencyBudget.of(load_config(config, ["measure.margin=0.25"]), 10.0, 1.0).held_back.limit == 4.0
    assert LatencyBudget.of(load_config(config, ["search.mode=accuracy"]), 10.0, 1.0).margin == 0.0
    seconds = load_config(config, ["budget={metric: latency_s, limit: 5.0}"])
    assert LatencyBudget.of(seconds, 10.0, 1.0) == SECONDS


def test_the_figures_survive_the_run_directory(tmp_path: Path) -> None:
    path = tmp_path / "latency_budget.json"
    assert LatencyBudget.read(path) is None
    budget = SHARE.with_probes({"baseline": Probe(10.0, 11.0), "cheapest": Probe(1.0, 1.2)})
    budget.write(path)
    assert LatencyBudget.read(path) == budget
    for damage in (b"{", b"[]", b'{"baseline_s": 1}', path.read_bytes().replace(b"10.0", b"NaN")):
        path.write_bytes(damage)
        with pytest.raises(InputError, match="is damaged"):
            LatencyBudget.read(path)
    values = json.loads(json.dumps({"baseline_s": "ten", "least_s": 1, "limit_s": 5, "probes": {}}))
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="is damaged"):
        LatencyBudget.read(path)


def test_the_margin_comes_from_policies_such_as_a_search_proposes(tmp_path: Path) -> None:
    graph = cifar_resnet(8)
    space = ChannelSpace.build(graph)
    with LocalPrices(lambda: fake_prices(tmp_path / "table.sqlite")) as prices:
        backend = LayerBackend(graph, prices)
        whole = backend.price(graph.kept)
        budget = LatencyBudget(whole, backend.price(space.least), 0.5 * whole, 0.5)

        def timed(policies: Mapping[str, CompressionPolicy]) -> dict[str, float]:
            kept = {name: graph.kept_units(policy) for name, policy in policies.items()}
            assert kept["baseline"] == graph.kept
            assert len(set(kept.values())) == len(kept)
            for name in ("random-0", "random-1", "random-2"):
                assert 0.2 * whole < backend.price(kept[name]) <= budget.limit_s
            return {name: (1.03 if name == "random-1" else 1.0) * backend.price(units) for name, units in kept.items()}

        found = with_margin(budget, SearchSpace.of_channels(space), backend, timed)
        assert found.margin == pytest.approx(0.03)
        assert set(found.probes) == {"baseline", "random-0", "random-1", "random-2"}
        with pytest.raises(InputError, match=r"once 3\.0% is held back for the table's error: the cheapest takes"):
            LatencyBudget(whole, budget.least_s, 1.01 * budget.least_s, margin=0.03).checked()


def candidates(limit: float) -> Finalist | None:
    """The more accurate, the slower: from 5 seconds by the table down to 4."""
    costs = [cost for cost in (5.0, 4.9, 4.8, 4.5, 4.0) if cost <= limit]
    return (
        Finalist("best", CompressionPolicy.from_keep({"conv": costs[0] / 10}), table_latency_s=costs[0])
        if costs
        else None
    )


@pytest.mark.parametrize(
    ("off", "measured", "chosen"),
    [
        (1.0, 1, 5.0),  # the table is right
        (1.03, 2, 4.8),  # 5.0 takes 5.15: what takes 5.0 / 1.03 by the table is next
        (1.2, 2, 4.0),
    ],
)
def test_the_best_policy_that_keeps_the_budget_by_the_clock_is_chosen(off: float, measured: int, chosen: float) -> None:
    asked: list[float] = []

    def timed(policies: Mapping[str, CompressionPolicy]) -> dict[str, float]:
        asked.append(10.0 * policies["best"].layers["conv"].keep)  # type: ignore[operator]
        return {"baseline": 20.0, "best": 2.0 * off * asked[-1]}  # a slower machine today, for both

    found = with_chosen_limit(SHARE, candidates, timed)
    assert len(asked) == measured
    best = candidates(found.chosen_limit_s or 0.0)
    assert best is not None
    assert best.table_latency_s == chosen == asked[-1]


def test_where_no_candidate_keeps_the_budget_the_one_closest_to_it_is_chosen() -> None:
    seconds = iter([5.5, 5.2, 5.3])
    found = with_chosen_limit(SECONDS, candidates, lambda policies: {"baseline": 10.0, "best": next(seconds)})
    assert next(seconds, None) is None  # all candidates were tried
    assert CANDIDATES == 3
    best = candidates(found.chosen_limit_s or 0.0)
    assert best is not None
    assert best.table_latency_s == 4.5  # the second: at most 5.0 / 1.1 by the table
    assert with_chosen_limit(SHARE, lambda limit: None, lambda policies: {}).chosen_limit_s == SHARE.limit_s


def test_a_network_is_made_of_what_its_policy_was_priced_by() -> None:
    compiled = Compiled("best", (), 0.0, ("conv", "conv", "dense"), {"conv": "cafe", "dense": "beef"})
    check_code(compiled, ["conv", "dense", "conv"], {"conv": "cafe"})  # dense was estimated
    with pytest.raises(TrimtabError, match="another number of times"):
        check_code(compiled, ["conv", "dense"], {})
    with pytest.raises(TrimtabError, match="operator dense is other code"):
        check_code(compiled, ["conv", "dense", "conv"], {"dense": "dead"})
