"""Trimtab from Python, as far as it needs no Ray."""

from pathlib import Path
from typing import Any

import gymnasium
import pytest

import automl
from automl.api import resume, start
from automl.errors import TrimtabError
from automl.problem import Problem, searches
from automl.progress import Progress
from automl.run.directory import RunDirectory
from automl.run.stages import Run
from automl.run.store import EvaluationRow, Store
from search_spaces.objective import Evaluation

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


def test_unknown_names_of_the_package_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'serch'"):
        _ = automl.serch
