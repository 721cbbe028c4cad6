"""A search of channels and bits under a budget on an accelerator that exists as a description only."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_processes import trimtab

from automl.config import load_config
from automl.configured import search_space, untrained_graph
from automl.costs.pricing import pricing_backend
from automl.report import write_report
from automl.run.explanation import Explanation
from automl.run.store import Store
from search_spaces.policy import CompressionPolicy

CONFIG: dict[str, Any] = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "args": {"size": 16}},
    "baseline": {"epochs": 2, "lr": 0.05},
    "space": {"weight_bits": [4, 8], "activation_bits": [8], "ends": True},
    "budget": {"metric": "energy_j", "ratio": 0.4},
    "search": {"algorithm": "random", "evaluations": 10, "evaluators": 1},
    "compression": {"calibration_images": 60},
    "fine_tune": {"epochs": 1},
    "measure": {"backend": "none", "accelerator": "chips/mine.yaml"},
}
MINE: dict[str, Any] = {
    "class": "roofline",
    "title": "my chip",
    "source": "a plan",
    "clock": "500 MHz",
    "technology": "../my_process.yaml",
    "weight_bits": [8, 16],
    "activation_bits": [8, 16],
    "unquantised_bits": 16,
    "static_power": "5 mW",
    "peak": {8: "64 GMAC/s", 16: "16 GMAC/s"},
    "memories": {"dram": {"bandwidth": "1 GB/s"}, "l2": {"size": "16 KiB", "bandwidth": "8 B/cycle"}},
}
PROCESS = {
    "name": "mine",
    "source": "a plan",
    "multiply_8": "0.1 pJ",
    "add_32": "0.05 pJ",
    "multiply_float": "2 pJ",
    "add_float": "0.5 pJ",
    "sram": {"8 KiB": "0.1 pJ/bit", "1 MiB": "1 pJ/bit"},
    "register": "0.02 pJ/bit",
    "dram": "20 pJ/bit",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search; the description that it began with is gone."""
    home: Path = tmp_path_factory.mktemp("accelerator")
    (home / "chips").mkdir()
    (home / "chips" / "mine.yaml").write_text(yaml.safe_dump(MINE))
    (home / "my_process.yaml").write_text(yaml.safe_dump(PROCESS))
    (home / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    code, out, err = trimtab(home, "search", "config.yaml", "--out", "run")
    assert code == 0, err
    assert "modelled latency" in out
    assert "µJ, modelled" in out
    for file in ("chips/mine.yaml", "my_process.yaml"):
        (home / file).unlink()
    return home / "run"


def test_every_policy_is_priced_by_the_model_and_the_best_keeps_its_budget(run: Path) -> None:
    config = load_config(run / "config.yaml")
    assert isinstance(config.measure.accelerator, dict)  # the run remembers the description itself
    assert config.measure.accelerator["technology"]["name"] == "mine"
    summary = json.loads((run / "summary.json").read_text())
    limit = summary["budget"]["limit"]
    assert summary["budget"]["metric"] == "energy_j"
    assert limit == pytest.approx(0.4 * summary["baseline"]["energy_j"])
    for name in ("best", "uniform", "random"):
        assert summary[name]["feasible"]
        assert 0 < summary[name]["energy_j"] <= limit
        assert summary[name]["modelled_latency_s"] < summary["baseline"]["modelled_latency_s"]
        assert summary[name]["latency_s"] is None  # nothing was measured
    store = Store.read(run / "trials.sqlite")
    found = list(store.evaluations())
    store.close()
    assert len(found) == 11  # random search, and the uniform policy
    space = search_space(config, untrained_graph(config))
    assert all(space.contains(row.policy) for row in found)
    assert len({row.policy.digest for row in found}) == 11
    assert all(row.evaluation.feasible and row.evaluation.cost["energy_j"] <= limit for row in found)


def test_layers_of_both_networks_stand_in_the_report(run: Path) -> None:
    usage = json.loads((run / "accelerator.json").read_text())
    assert set(usage) == {"baseline", "best"}
    page = write_report(run).read_text()
    assert "Layers on my chip" in page
    assert "modelled energy" in page
    summary = json.loads((run / "summary.json").read_text())
    for name, network in usage.items():
        joules = sum(layer["energy_j"] for layer in network["layers"])
        assert joules == pytest.approx(summary[name]["energy_j"])
        bits = {16} if name == "baseline" else {8}  # what is not quantised, and 4 and 8 bits
        assert {layer["weight_bits"] for layer in network["layers"]} == bits


def test_the_best_policy_is_explained_layer_by_layer(run: Path) -> None:
    summary, found = json.loads((run / "summary.json").read_text()), Explanation.read(run / "explanation.json")
    assert found is not None
    assert json.loads((run / "explanation.json").read_text()) == summary["explanation"]
    (budget,), (stated,) = found.budgets, summary["budgets"]
    assert (budget.metric, budget.limit) == (stated["metric"], stated["limit"]) == ("energy_j", budget.limit)
    assert [budget.before, budget.after] == pytest.approx([summary[name]["energy_j"] for name in ("baseline", "best")])
    assert stated["used"] == pytest.approx(budget.after / budget.whole)
    for when, total in enumerate((budget.before, budget.after)):
        assert sum(layer.costs["energy_j"][when] for layer in found.layers) == pytest.approx(total)
    losses = [layer.loss for layer in found.layers if layer.loss is not None]
    assert losses
    assert all(loss.error is None and loss.divergence is not None and loss.divergence > 0.0 for loss in losses)
    assert found.images == 256


def test_what_is_exported_costs_what_was_promised(run: Path) -> None:
    config = load_config(run / "config.yaml")
    graph = untrained_graph(config)
    policy = CompressionPolicy.load(run / "best" / "policy.json")
    cost = pricing_backend(config.measure.accelerator).estimate(graph.apply(policy))
    assert cost.energy_j == json.loads((run / "summary.json").read_text())["best"]["energy_j"]
    assert not cost.measured


@pytest.mark.slow
def test_the_exported_network_verifies(run: Path) -> None:
    code, out, err = trimtab(run.parent, "verify", "run/best")
    assert code == 0, f"{out}{err}"


def test_a_run_that_is_done_says_so_without_its_description(run: Path) -> None:
    code, _, err = trimtab(run.parent, "resume", "run")
    assert code == 0, err
