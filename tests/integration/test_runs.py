"""Whole runs in processes of their own, with a real Ray, killed for real."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from run_processes import (
    PATIENCE_S,
    alive,
    evaluations,
    kill_after,
    none_left_behind,
    record,
    start,
    trimtab,
    wait_until,
)

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


@pytest.fixture(scope="module", autouse=True)
def families() -> Iterator[list[psutil.Process]]:
    """Processes of killed drivers."""
    with none_left_behind() as left:
        yield left


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


def test_stopped_then_killed_and_resumed_with_one_evaluator_equals_uninterrupted(
    finished: Path, home: Path, families: list[psutil.Process]
) -> None:
    """Ctrl-C, which reaches everything that runs in the terminal; SIGKILL to the driver; SIGKILL to an evaluator."""
    run = home / "broken"
    chance = random.Random(seed := random.SystemRandom().randrange(2**32))
    command = ("search", "tiny.yaml", "--out", "broken", "--set", "search.evaluators=1")
    _stopped_by(lambda process: os.killpg(process.pid, signal.SIGINT), home, "broken", command)
    process = start(home, "resume", "broken")
    wait_until(process, lambda: bool(_evaluators(process)))
    family = psutil.Process(process.pid).children(recursive=True)
    assert {address for member in family for address in _listening(member)} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    families.extend(kill_after(process, run, chance, at_least=12))
    assert json.loads(trimtab(home, "status", "broken", "--json")[1])["state"] == "unfinished"
    _finished_without_its_evaluators(home, run, chance)
    assert record(run) == record(finished), f"seed {seed}"
    assert summary(run) == summary(finished), f"seed {seed}"


@pytest.mark.slow
def test_killed_again_and_again(finished: Path, home: Path, families: list[psutil.Process]) -> None:
    """SIGKILL to the driver while it searches, three times; one evaluator instead of two all along."""
    run = home / "killed"
    chance = random.Random(seed := random.SystemRandom().randrange(2**32))
    command = ["search", "tiny.yaml", "--out", "killed", "--set", "search.evaluators=1"]
    for kill in range(3):
        families.extend(kill_after(start(home, *command), run, chance, at_least=kill * 12))
        command = ["resume", "killed"]
    _finished_without_its_evaluators(home, run, chance)
    assert record(run) == record(finished), f"seed {seed}"
    assert summary(run) == summary(finished), f"seed {seed}"


def _finished_without_its_evaluators(home: Path, run: Path, chance: random.Random) -> None:
    """Resume a run from elsewhere, and kill the evaluators that it has at some moment."""
    process = start(home, "resume", str(run), folder=home / "elsewhere")
    wait_until(process, lambda: bool(_evaluators(process)))
    time.sleep(chance.uniform(0.0, 3.0))
    for worker in _evaluators(process):
        worker.kill()
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err


def _listening(process: psutil.Process) -> set[str]:
    """Addresses that a process accepts connections at."""
    try:
        found = process.net_connections("tcp")
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return set()
    return {connection.laddr.ip for connection in found if connection.status == psutil.CONN_LISTEN}


def _evaluators(process: subprocess.Popen[str]) -> list[psutil.Process]:
    family = psutil.Process(process.pid).children(recursive=True)
    return [child for child in family if alive(child) and child.name().startswith("ray::Worker")]


@pytest.mark.slow
@pytest.mark.parametrize("everything", [False, True])
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
