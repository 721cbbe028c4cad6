"""Searches on the latencies of remote devices, some of which die and some of which compute wrongly."""

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from latency_fakes import ArithmeticTimer
from rpc_devices import devices
from run_processes import start, trimtab

from automl.config import Config, load_config
from automl.configured import search_space, untrained_graph
from automl.costs.pricing import cost_of, price
from automl.searchers import make_searcher
from automl.testing.problems import AdditiveEvaluator
from backends.latency_table import LatencyTable, default_table_path
from backends.measuring import TOLERANCE
from backends.operator_prices import OperatorPrices
from backends.recipes import Recipe
from backends.table_backend import Latencies, TableBackend, find_engine, open_prices
from backends.tvm.target import cpu_for
from search_spaces.objective import Constraint

TOTAL = 12
CONFIG: dict[str, Any] = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "args": {"size": 16}},
    "space": {"round_to": 8},
    "budget": {"metric": "latency_s", "ratio": 0.7},
}


class Killing:
    """Prices that kill something as soon as the second operator has been measured."""

    def __init__(self, prices: OperatorPrices, kill: Callable[[], None]) -> None:
        self._prices = prices
        self._kill = kill
        self._measured = 0

    def latencies(self, recipes: Sequence[Recipe]) -> dict[str, float]:
        return self._prices.latencies(recipes, self._watch)

    def _watch(self, *_: object) -> None:
        self._measured += 1
        if self._measured == 2:
            self._kill()


def searched(config: Config, prices: Latencies) -> list[tuple[str, float]]:
    """Digest and latency of all that a search proposes, by these prices."""
    graph = untrained_graph(config)
    space = search_space(config, graph)
    backend = TableBackend("tvm", graph, prices, device=config.measure.remote)
    constraint = Constraint("latency_s", 0.7 * backend.price(graph.kept))
    searcher = make_searcher(
        "ddpg",
        space=space,
        constraint=constraint,
        seed=0,
        evaluations=TOTAL,
        options={"warmup": 4, "hidden": 24},
        cost=cost_of(graph, backend, "latency_s"),
    )
    evaluator = AdditiveEvaluator(graph, Constraint("macs", graph.macs))
    found = []
    for _ in range(TOTAL):
        policy = searcher.ask()
        searcher.tell(policy, evaluator(policy))
        found.append((policy.digest, price(graph, policy, backend)["latency_s"]))
    assert all(seconds <= constraint.limit for _, seconds in found)
    return found


@pytest.mark.slow
def test_a_search_on_devices_that_fail_finds_what_a_local_one_does_by_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    mcpu = cpu_for().mcpu
    with devices("pi:sound", "pi:sound", "pi:wrong") as (tracker, (_, killed, wrong)):
        device = {"tracker": tracker, "key": "pi", "target": {"mcpu": mcpu}, "timeout_s": 120.0}
        config = load_config({**CONFIG, "measure": {"device": device}})
        with open_prices("tvm", device=config.measure.remote) as prices:
            there = searched(config, Killing(prices, lambda: killed.signal(signal.SIGKILL)))
            left_out = {notice.split()[1] for notice in prices.notices}
            entries = prices.table.entries()
            key = prices.table.device
    assert wrong.name in left_out <= {killed.name, wrong.name}
    assert all(entry.error <= TOLERANCE and entry.runs > 1 for entry in entries.values())
    nobody = ArithmeticTimer(refused="")  # every recipe holds that: nothing can be measured
    with LatencyTable(default_table_path(key), key) as table:
        here = searched(load_config(CONFIG), OperatorPrices(table, nobody))
    assert here == there
    assert nobody.measured.total() == 0
    assert key.digest != find_engine("tvm").device("tvm", 1).digest


@pytest.mark.slow
def test_a_run_tells_the_latencies_of_its_device(tmp_path: Path) -> None:
    mcpu = cpu_for().mcpu
    with devices("pi:sound", "pi:wrong") as (tracker, (_, wrong)):
        device = {"tracker": tracker, "key": "pi", "target": {"mcpu": mcpu}, "timeout_s": 120.0}
        config = {
            **CONFIG,
            "baseline": {"epochs": 1},
            "search": {"algorithm": "random", "evaluations": 3},
            "compression": {"calibration_images": 60},
            "fine_tune": {"epochs": 0},
            "measure": {"device": device, "margin": 0.02},
        }
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
        process = start(tmp_path, "search", "tiny.yaml", "--out", "run")
        out, err = process.communicate(timeout=550)
        assert process.returncode == 0, err
    assert "latency on pi" in out
    assert f"device {wrong.name} of kind 'pi' is left out: it answers wrongly" in out + err
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["latency_device"] == {**device, "target": {"mcpu": mcpu, "mtriple": ""}}
    assert summary["best"]["latency_measured"]
    assert summary["best"]["onnxruntime_latency_s"] is None
    measured = json.loads((run / "latency.json").read_text())["networks"]
    assert {found["tvm"]["details"]["target"] for found in measured.values()} == {mcpu}
    assert len({found["tvm"]["details"]["device"] for found in measured.values()}) == 1
    manifest = json.loads((run / "best" / "manifest.json").read_text())
    assert manifest["device"] == {"key": "pi", "mcpu": mcpu, "mtriple": ""}
    assert list(manifest["latency"]) == ["tvm"]
    assert manifest["latency"]["tvm"]["details"]["device"].startswith("pi at 127.0.0.1:")
    report = (run / "report.html").read_text()
    assert f"for {mcpu}, on a remote device of kind pi" in report
    assert "each measured once on the remote device" in report
    code, out, err = trimtab(tmp_path, "verify", "run/best")
    assert code == 0, out + err
