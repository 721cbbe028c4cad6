"""A stage that has ended is not repeated: a run whose driver is killed after each of them, with a real table."""

import json
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from run_processes import PATIENCE_S, none_left_behind, record, start, trimtab, wait_until

CONFIG: dict[str, Any] = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "args": {"size": 16}},
    "baseline": {"epochs": 2, "lr": 0.05},
    "space": {"round_to": 8},
    "budget": {"metric": "latency_s", "ratio": 0.7},
    "search": {"algorithm": "evolution", "evaluations": 12, "evaluators": 2},
    "compression": {"calibration_images": 60},
    "fine_tune": {"epochs": 2, "lr": 0.01},
    "measure": {"margin": 0.02},
}
AFTER_SEARCH = ("check", "explanation", "finalists", "measure", "export", "done")


def stage(run: Path) -> str:
    try:
        return str(json.loads((run / "run.json").read_bytes())["stage"])
    except FileNotFoundError:
        return ""


def finalists(run: Path) -> int:
    return len(list(run.glob("finalists/*/result.json")))


ENDS: dict[str, tuple[Callable[[Path], bool], tuple[str, ...]]] = {
    "table": (lambda run: (run / "run.json").exists(), ("config.yaml",)),
    "baseline": (lambda run: (run / "baseline.safetensors").exists(), ("baseline.safetensors",)),
    "search": (lambda run: stage(run) in AFTER_SEARCH, ("trials.sqlite", "searchers/*")),
    "explanation": (lambda run: (run / "explanation.json").exists(), ("explanation.json",)),
    "fine-tuning": (lambda run: finalists(run) == 5, ("finalists/*/result.json", "finalists/*/*.safetensors")),
    "measuring": (lambda run: (run / "latency.json").exists(), ("latency.json",)),
    "export": (lambda run: (run / "best" / "manifest.json").exists(), ("best/*",)),
}
"""When each stage has ended, and what it leaves."""


@pytest.fixture(scope="module", autouse=True)
def families() -> Iterator[list[psutil.Process]]:
    """Processes of killed drivers."""
    with none_left_behind() as left:
        yield left


def priced(home: Path) -> list[Any]:
    """What stands in the latency table."""
    (table,) = (home / "cache" / "latency").glob("*.sqlite")
    with closing(sqlite3.connect(f"file:{table}?mode=ro", uri=True)) as connection:
        return connection.execute("SELECT id, row FROM entries ORDER BY id").fetchall()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_driver_that_is_killed_after_each_stage_repeats_none(tmp_path: Path, families: list[psutil.Process]) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    run, command = tmp_path / "run", ("search", "config.yaml", "--out", "run")
    left: dict[Path, int] = {}
    table: list[Any] = []
    found: list[Any] = []
    for name, (ended, leaves) in ENDS.items():
        process = start(tmp_path, *command)
        command = ("resume", "run")
        wait_until(process, lambda ended=ended: ended(run))
        families.extend(psutil.Process(process.pid).children(recursive=True))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=PATIENCE_S)
        assert {path: path.stat().st_mtime_ns for path in left} == left, name
        assert priced(tmp_path)[: len(table)] == table, name
        table = priced(tmp_path)
        if name == "search":
            found = record(run)
        left |= {path: path.stat().st_mtime_ns for pattern in leaves for path in run.glob(pattern)}
    assert trimtab(tmp_path, "resume", "run")[0] == 0
    assert json.loads((run / "run.json").read_bytes())["state"] == "done"
    assert {path: path.stat().st_mtime_ns for path in left} == left
    assert record(run) == found
    kept = {path.relative_to(run).parts[0] for path in left}
    assert kept >= {"baseline.safetensors", "trials.sqlite", "explanation.json", "finalists", "latency.json", "best"}
    assert trimtab(tmp_path, "verify", "run/best")[0] == 0
