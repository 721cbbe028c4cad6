"""Trimtab from Python, as far as it needs no Ray."""

from pathlib import Path
from typing import Any

import gymnasium
import pytest

import automl
from automl.api import config_for, resume, start
from automl.errors import InputError, TrimtabError
from automl.problem import Problem, searches
from automl.progress import Progress
from automl.run.directory import RunDirectory
from automl.run.stages import Run
from automl.run.store import EvaluationRow, Store
from automl.searchers import given_policies
from search_spaces.objective import Evaluation
from search_spaces.policy import CompressionPolicy, LayerPolicy

CONFIG: dict[str, Any] = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "args": {"size": 16}},
    "baseline": {"epochs": 0},
    "budget": {"metric": "macs", "ratio": 0.5},
    "search": {"evaluations": 3},
    "compression": {"calibration_images": 50},
    "fine_tune": {"epochs": 0},
    "measure": {"backend": "none"},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


def test_the_environment_of_a_config_evaluates_here_and_keeps_the_budget() -> None:
    env = automl.make_env(CONFIG)
    assert isinstance(env, gymnasium.Env)
    env.reset(seed=0)
    env.action_space.seed(0)
    done = False
    while not done:
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        done = terminated or truncated
    assert info["cost"]["macs"] <= 0.5 * Problem.outline(automl.load_config(CONFIG)).graph.macs
    assert reward == info["evaluation"].accuracy


def test_a_search_without_a_feasible_policy_says_so(tmp_path: Path) -> None:
    """As the faithful mode may end, whose rounding overshoots the budget."""
    config = automl.load_config(CONFIG)
    problem = Problem.build(config)
    directory = RunDirectory.create(tmp_path / "run", config)
    store = Store(directory.store_file)
    store.add_searches(searches(config))
    whole = problem.graph.policy()
    cost = {"macs": float(problem.graph.macs)}
    for search in searches(config):
        for number in range(search.evaluations):
            store.add(EvaluationRow(search.name, number, whole, Evaluation(0.99, cost, 1.0, 0.1)))
        store.finish(search.name)
    store.close()
    result = resume(directory.path)
    assert result.state == "infeasible"
    assert "within the budget" in str(result.reason)
    assert directory.info().state == "infeasible"
    assert directory.summary()["state"] == "infeasible"
    assert directory.summary()["best"] is None
    assert directory.report_file.exists()


def test_an_error_that_nobody_foresaw_is_logged_in_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(self: Run) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(Run, "drive", explode)
    with pytest.raises(TrimtabError, match=r"unexpected ZeroDivisionError: by zero; .*error\.log shows where"):
        start(automl.load_config(CONFIG), tmp_path / "run", Progress(quiet=True))
    directory = RunDirectory.open(tmp_path / "run")
    assert directory.info().state == "failed"
    assert "in explode" in directory.error_log.read_text()


@pytest.mark.parametrize("as_file", [False, True])
def test_a_given_policy_stands_in_the_config_of_its_run(tmp_path: Path, as_file: bool) -> None:
    """Whatever the config says of a search; what a policy holds survives both formats."""
    layers = {
        "conv1": LayerPolicy(keep=1 / 3, sparsity=1e-5, weight_bits=4, weight_granularity="group:8"),
        "on": LayerPolicy(rank=(3, 5), factorisation="tucker2"),  # YAML 1.1 would read true
        "0": LayerPolicy(remove=True),
    }
    policy = CompressionPolicy(layers, "0" * 64)
    path = tmp_path / "policy.json"
    path.write_text(policy.to_json())
    searched = {**CONFIG, "search": {"mode": "accuracy", "faithful": True, "seeds": [1, 2], "evaluators": 3}}
    config = config_for({**searched, "budget": None}, path if as_file else policy)
    assert (config.search.evaluations, config.search.seeds, config.search.evaluators) == (1, [0], 3)
    directory = RunDirectory.create(tmp_path / "run", config)
    assert directory.config() == config == config_for(config, policy)
    assert [each.digest for each in given_policies(directory.config().search.options)] == [policy.digest]
    assert [(row.name, row.evaluations) for row in searches(config)] == [("given", 1), ("uniform", 1)]


def test_a_policy_that_only_the_network_can_refuse_is_refused_before_the_run(tmp_path: Path) -> None:
    policy = CompressionPolicy({"lstm.weight_hh_l0": LayerPolicy(activation_bits=8)})
    config = {**CONFIG, "model": {"name": "lstm"}}
    with pytest.raises(InputError, match="lstm"):
        automl.compress_run(config, policy, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unknown_names_of_the_package_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'serch'"):
        _ = automl.serch
