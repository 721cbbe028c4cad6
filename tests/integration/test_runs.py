"""Whole runs in processes of their own, with a real Ray."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_processes import PATIENCE_S, evaluations, record, start, trimtab, wait_until

CONFIG: dict[str, Any] = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "args": {"size": 16}},
    "metric": "my_metric:share_right",  # a user's own module, to be found by every worker, also when resumed elsewhere
    "baseline": {"epochs": 2, "lr": 0.05},
    "budget": {"metric": "macs", "ratio": 0.5},
    "search": {"algorithm": "ddpg", "options": {"warmup": 6}, "evaluations": 24, "evaluators": 2, "lag": 3},
    "compression": {"calibration_images": 60},
    "fine_tune": {"epochs": 1},
    "measure": {"backend": "none"},
}
METRIC = """
from pathlib import Path

def share_right(outputs, labels):
    if Path(__file__).with_name("out_of_order").exists():
        raise RuntimeError("the metric is out of order")
    return (outputs.argmax(1) == labels).double().mean().item()
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config, whose runs share a cache."""
    folder: Path = tmp_path_factory.mktemp("runs")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "my_metric.py").write_text(METRIC)
    (folder / "elsewhere").mkdir()
    return folder


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    del found["wall_s"]
    return found


@pytest.fixture(scope="module")
def finished(home: Path) -> Path:
    """The run that was never interrupted, with two evaluators."""
    code, out, err = trimtab(home, "search", "tiny.yaml", "--out", "whole")
    assert code == 0, err
    assert "from scratch" in out
    return home / "whole"


def test_a_run_leaves_what_it_should(finished: Path, home: Path) -> None:
    found = json.loads((finished / "summary.json").read_text())
    assert found["state"] == "done"
    assert found["seeds"] == [0]
    assert found["evaluations"] == 24
    assert found["budget"] == {"metric": "macs", "limit": found["baseline"]["macs"] / 2, "unit": "MACs"}
    for name in ("baseline", "best", "uniform", "random", "from_scratch"):
        network = found[name]
        assert 0.0 <= network["accuracy"] <= 1.0
        assert network["feasible"] == (network["macs"] <= found["budget"]["limit"])
        assert network["latency_s"] is None
        assert network["latency_measured"] is False
        assert (finished / network["weights"]).is_file()
    assert found["best"]["feasible"]
    assert found["wall_s"] > 0
    assert (finished / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert (finished / "best" / "manifest.json").is_file()
    assert not [path for path in finished.rglob("*") if path.name.endswith((".tmp", "-wal", "-shm"))]
    known = {row[0]: row[3] for row in record(finished)[:3]}
    assert known == {"ddpg-0": 24, "random-0": 24, "uniform": 1}
    written = {path.name for path in home.iterdir()} - {
        ".cache",
        "__pycache__",
    }  # ONNX Runtime leaves its telemetry's identity there
    assert written == {"tiny.yaml", "my_metric.py", "elsewhere", "cache", "whole"}


def test_a_finished_run_is_left_as_it_is(finished: Path, home: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    assert trimtab(home, "resume", "whole")[0] == 0
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before
    code, _, err = trimtab(home, "search", "tiny.yaml", "--out", "whole")
    assert code == 2
    assert "trimtab resume whole" in err
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


def test_status_tells_where_a_run_stands(finished: Path, home: Path) -> None:
    code, out, _ = trimtab(home, "status", "whole", "--json")
    assert code == 0
    status = json.loads(out)
    assert status["state"] == "done"
    assert {search["name"]: search["done"] for search in status["searches"]} == {
        "ddpg-0": 24,
        "random-0": 24,
        "uniform": 1,
    }
    assert set(status["finalists"].values()) == {"finished"}


@pytest.mark.slow
def test_interrupted_and_resumed_elsewhere_with_one_evaluator_equals_uninterrupted(finished: Path, home: Path) -> None:
    """Ctrl-C, which reaches everything that runs in the terminal. Kills are in test_kills.py."""
    command = ("search", "tiny.yaml", "--out", "broken", "--set", "search.evaluators=1")
    _stopped_by(lambda process: os.killpg(process.pid, signal.SIGINT), home, "broken", command)
    code, _, err = trimtab(home, "resume", str(home / "broken"), folder=home / "elsewhere")
    assert code == 0, err
    assert record(home / "broken") == record(finished)
    assert summary(home / "broken") == summary(finished)


@pytest.mark.parametrize("everything", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sigterm_stops_too(home: Path, finished: Path, everything: bool) -> None:
    """To the driver, or as a service manager sends it, to Ray's processes as well."""
    name = f"ended-{everything}"
    command = ("search", "tiny.yaml", "--out", name, "--set", "search.evaluations=5000")
    _stopped_by(
        lambda process: os.killpg(process.pid, signal.SIGTERM) if everything else process.terminate(),
        home,
        name,
        command,
    )


def _stopped_by(stop: Callable[[subprocess.Popen[str]], None], home: Path, name: str, command: tuple[str, ...]) -> None:
    """Start a command, stop it once it has evaluated something more, and look at what it leaves."""
    run = home / name
    before = evaluations(run)
    process = start(home, *command)
    wait_until(process, lambda: evaluations(run) > before + 4)
    stop(process)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert out == ""
    assert "Traceback" not in err
    assert f"go on with `trimtab resume {name}`" in err  # a thread of Ray's, interrupted too, may have the last word
    assert json.loads((run / "run.json").read_text())["state"] == "unfinished"
    assert not list(run.glob("trials.sqlite-*"))


@pytest.mark.slow
def test_failures_in_a_row_stop_a_run_which_may_then_try_again(home: Path, finished: Path) -> None:
    (home / "out_of_order").touch()
    try:
        code, _, err = trimtab(home, "search", "tiny.yaml", "--out", "failing")
    finally:
        (home / "out_of_order").unlink()
    assert code == 1
    last = err.splitlines()[-1]
    assert "10 evaluations failed in a row" in last
    assert "the metric is out of order" in last
    assert json.loads((home / "failing" / "run.json").read_text())["state"] == "failed"
    code, _, err = trimtab(home, "resume", "failing")
    assert code == 0, err
    assert record(home / "failing") == record(finished)
