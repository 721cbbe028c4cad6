import json
from pathlib import Path

import pytest
import torch
from torch import nn

from automl.config import load_config
from automl.run.finalists import Compiled, Finalist, choose, measure_all, read_result
from automl.run.store import EvaluationRow
from automl.run.work import reinitialise
from backends.measuring import Artefact, Measurement
from search_spaces.objective import Evaluation
from search_spaces.policy import CompressionPolicy

BASE = {"model": {"name": "lenet5"}, "data": {"name": "digits"}, "budget": {"ratio": 0.5}}
CONFIG = load_config(BASE, ["search.algorithm=ddpg", "search.seeds=[0, 1]"])


def row(
    search: str, number: int, accuracy: float, macs: float, *, violation: float = 0.0, reward: float | None = None
) -> EvaluationRow:
    policy = CompressionPolicy.from_keep({"conv": (1 + number) / 100, "more": macs / 1000})
    return EvaluationRow(search, number, policy, Evaluation(accuracy, {"macs": macs}, violation, 0.1), reward)


def chosen(rows: list[EvaluationRow], config: object = CONFIG) -> dict[str, tuple[str | None, int | None]]:
    return {item.name: (item.search, item.number) for item in choose(rows, config, "macs")}  # type: ignore[arg-type]


def test_the_most_accurate_feasible_policy_of_each_kind_is_chosen() -> None:
    rows = [
        row("ddpg-0", 0, 0.90, 100),
        row("ddpg-0", 1, 0.99, 200, violation=0.01),
        row("ddpg-1", 3, 0.95, 100),
        row("random-0", 0, 0.80, 100),
        row("random-1", 7, 0.85, 100),
        row("uniform", 0, 0.70, 100),
    ]
    assert chosen(rows) == {
        "baseline": (None, None),
        "best": ("ddpg-1", 3),
        "uniform": ("uniform", 0),
        "random": ("random-1", 7),
        "from_scratch": ("ddpg-1", 3),
    }


def test_where_nothing_is_trained_nothing_is_trained_from_scratch() -> None:
    fine_tune = CONFIG.fine_tune.model_copy(update={"epochs": 0})
    found = choose([row("ddpg-0", 0, 0.9, 100)], CONFIG.model_copy(update={"fine_tune": fine_tune}), "macs")
    assert [item.name for item in found] == ["baseline", "best"]


def test_of_equals_the_cheapest_then_the_earliest_wins() -> None:
    rows = [row("ddpg-1", 0, 0.9, 90), row("ddpg-0", 5, 0.9, 90), row("ddpg-0", 2, 0.9, 100), row("ddpg-0", 6, 0.9, 90)]
    assert chosen(rows)["best"] == ("ddpg-0", 5)
    assert chosen(rows[::-1])["best"] == ("ddpg-0", 5)


def test_nothing_feasible_means_no_best_and_failed_evaluations_do_not_count() -> None:
    failed = EvaluationRow("ddpg-0", 0, CompressionPolicy(), Evaluation(0.0, {"macs": 1.0}, 0.0, 0.1, "boom"))
    assert chosen([failed, row("ddpg-0", 1, 0.9, 10, violation=1e-9)]) == {"baseline": (None, None)}


def test_what_costs_more_than_the_limit_is_passed_over_but_for_the_one_uniform_policy() -> None:
    rows = [
        row("ddpg-0", 0, 0.99, 100),
        row("ddpg-0", 1, 0.90, 90),
        row("random-0", 0, 0.95, 95),
        row("random-0", 1, 0.80, 80),
        row("uniform", 0, 0.70, 100),
    ]
    found = {item.name: item.number for item in choose(rows, CONFIG, "macs", 90)}
    assert found == {"baseline": None, "best": 1, "uniform": 0, "random": 1, "from_scratch": 1}
    assert [item.name for item in choose(rows, CONFIG, "macs", 10)] == ["baseline", "uniform"]


def test_in_accuracy_mode_the_reward_decides() -> None:
    config = load_config({**BASE, "budget": None}, ["search.mode=accuracy"])
    rows = [row("ddpg-0", 0, 0.99, 1000, reward=-0.5), row("ddpg-0", 1, 0.9, 10, reward=-0.2)]
    assert chosen(rows, config)["best"] == ("ddpg-0", 1)


def test_of_policies_that_are_given_the_most_accurate_is_chosen_whatever_the_budget() -> None:
    config = load_config(BASE, ["search.algorithm=given"])
    failed = EvaluationRow("given", 2, CompressionPolicy(), Evaluation(0.0, {"macs": 1.0}, 0.0, 0.1, "boom"))
    rows = [row("given", 0, 0.8, 10), row("given", 1, 0.9, 90, violation=0.8), failed, row("uniform", 0, 0.7, 90)]
    assert chosen(rows, config) == {
        "baseline": (None, None),
        "best": ("given", 1),
        "uniform": ("uniform", 0),
        "from_scratch": ("given", 1),
    }
    assert chosen([failed], config) == {"baseline": (None, None)}


def test_a_result_counts_for_its_own_policy_only(tmp_path: Path) -> None:
    finalist = Finalist("best", CompressionPolicy.from_keep({"conv": 0.5}))
    assert read_result(tmp_path, finalist) is None
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "result.json").write_text(json.dumps({"policy": finalist.policy.digest, "accuracy": 0.5}))
    assert read_result(tmp_path, finalist) == {"policy": finalist.policy.digest, "accuracy": 0.5}
    assert read_result(tmp_path, Finalist("best", CompressionPolicy())) is None
    (tmp_path / "result.json").write_text("{")
    assert read_result(tmp_path, finalist) is None


def test_of_several_processes_the_median_latency_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process may happen to place a network badly; it must not decide."""
    slow_at = iter([0, 2, 1])

    def measured(artefacts: list[Artefact], *_: object, **__: object) -> list[Measurement]:
        slow = next(slow_at)
        return [
            Measurement(9.0 if index == slow else 1.0 + index, 1.0, 9.0, 10, 1, artefact.engine)
            for index, artefact in enumerate(artefacts)
        ]

    monkeypatch.setattr("automl.run.finalists.measure", measured)
    compiled = [
        Compiled("baseline", (Artefact("tvm", Path("a.so")), Artefact("onnxruntime", Path("a.onnx"))), 1e-7),
        Compiled("best", (Artefact("tvm", Path("b.so")),), 2e-7),
    ]
    found = measure_all(compiled, torch.zeros(1), threads=1)
    assert {name: {engine: figures["latency_s"] for engine, figures in of.items()} for name, of in found.items()} == {
        "baseline": {"tvm": 1.0, "onnxruntime": 2.0},
        "best": {"tvm": 3.0},
    }
    assert found["best"]["tvm"]["max_error"] == 2e-7
    assert measure_all([], torch.zeros(1), threads=1) == {}


def test_reinitialised_weights_come_from_the_seed_alone() -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    first, second, other = network(), network(), network()
    state = torch.random.get_rng_state()
    reinitialise(first, 1)
    reinitialise(second, 1)
    reinitialise(other, 2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first[0].weight, second[0].weight)  # type: ignore[index]
    assert not torch.equal(first[0].weight, other[0].weight)  # type: ignore[index]
