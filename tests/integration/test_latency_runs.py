"""Whole runs under a latency budget: the real table of this machine, TVM, Ray, processes of their own."""

import json
import random
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from run_processes import PATIENCE_S, none_left_behind, start, trimtab, wait_until
from table_budgets import check_table_budget

from automl.costs.latency_budget import LatencyBudget

CONFIG: dict[str, Any] = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "args": {"size": 16}},
    "baseline": {"epochs": 1},
    "space": {"round_to": 8},
    "budget": {"metric": "latency_s", "ratio": 0.7},
    "search": {"algorithm": "ddpg", "options": {"warmup": 4}, "evaluations": 12, "evaluators": 1, "lag": 3},
    "compression": {"calibration_images": 60},
    "fine_tune": {"epochs": 0},
    "measure": {"margin": 0.02},
}


pytestmark = pytest.mark.slow  # test_kills.py has such a run, killed


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config, whose runs share a cache and so a table."""
    folder: Path = tmp_path_factory.mktemp("latency")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


@pytest.fixture(scope="module", autouse=True)
def families() -> Iterator[list[psutil.Process]]:
    """Processes of killed drivers."""
    with none_left_behind() as left:
        yield left


def rows(run: Path) -> list[tuple[Any, ...]]:
    """Everything that stands in the store, times aside; the prices are in it."""
    with closing(sqlite3.connect(f"file:{run / 'trials.sqlite'}?mode=ro", uri=True)) as connection:
        return connection.execute(
            "SELECT search, number, digest, accuracy, reward, cost, violation, feasible, error "
            "FROM evaluations ORDER BY search, number"
        ).fetchall()


@pytest.fixture(scope="module")
def finished(home: Path) -> Path:
    """A run that was never interrupted."""
    code, out, err = trimtab(home, "search", "tiny.yaml", "--out", "whole")
    assert code == 0, err
    assert "by the table" in out
    return home / "whole"


def test_what_is_found_keeps_the_budget_by_the_table(finished: Path) -> None:
    check_table_budget(finished, 0.7, 0.02)


def test_a_budget_below_what_the_space_can_reach_is_refused_with_that_figure(finished: Path, home: Path) -> None:
    code, _, err = trimtab(home, "search", "tiny.yaml", "--out", "never", "--set", "budget.ratio=0.01")
    assert code == 2
    recorded = LatencyBudget.read(finished / "latency_budget.json")
    assert recorded is not None
    assert f"the cheapest costs {recorded.constraint.amount(recorded.least_s)}" in err.splitlines()[-1]
    assert not (home / "never").exists()


def test_profiling_is_resumed_where_it_was_interrupted(home: Path) -> None:
    command = ("profile", "tiny.yaml", "--set", "space.lower_bound=0.6")
    process = start(home, *command)
    table = home / "cache" / "latency"
    before = entries(table)
    wait_until(process, lambda: entries(table) > before)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, err
    stopped = re.search(r"stopped with (\d+) of (\d+) operators left to be measured; the same command goes on", err)
    assert stopped
    code, out, err = trimtab(home, *command)
    assert code == 0, err
    assert f"{stopped[2]}, {stopped[1]} measured just now" in out
    assert "whole network" in out


def entries(folder: Path) -> int:
    """Operators in the tables of a folder."""
    found = 0
    for table in folder.glob("*.sqlite"):
        with closing(sqlite3.connect(f"file:{table}?mode=ro", uri=True)) as connection:
            found += int(connection.execute("SELECT count(*) FROM entries").fetchone()[0])
    return found


def test_killed_and_resumed_with_two_evaluators_equals_uninterrupted(
    finished: Path, home: Path, families: list[psutil.Process]
) -> None:
    """SIGKILL to the driver while it searches, and to the process that prices operators."""
    run = home / "killed"
    chance = random.Random(seed := random.SystemRandom().randrange(2**32))
    process = start(home, "search", "tiny.yaml", "--out", "killed", "--set", "search.evaluators=2")
    wait_until(process, lambda: (run / "trials.sqlite").exists() and len(rows(run)) >= 3)
    time.sleep(chance.uniform(0.0, 1.0))
    families.extend(psutil.Process(process.pid).children(recursive=True))
    process.kill()
    process.communicate()
    process = start(home, "resume", "killed")
    wait_until(process, lambda: bool(priced_by(process)))
    time.sleep(chance.uniform(0.0, 2.0))
    for actor in priced_by(process):
        actor.kill()
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert rows(run) == rows(finished), f"seed {seed}"


def priced_by(process: subprocess.Popen[str]) -> list[psutil.Process]:
    family = psutil.Process(process.pid).children(recursive=True)
    return [child for child in family if child.is_running() and child.name().startswith("ray::PriceActor")]


def test_the_tables_error_is_measured_where_no_margin_is_given(finished: Path, home: Path) -> None:
    code, _, err = trimtab(
        home,
        "search",
        "tiny.yaml",
        "--out",
        "measured",
        "--set",
        "measure.margin=null",
        "--set",
        "budget.ratio=0.95",
        "--set",
        "search.evaluations=4",
    )
    assert code == 0, err
    recorded = LatencyBudget.read(home / "measured" / "latency_budget.json")
    assert recorded is not None
    assert set(recorded.probes) == {"baseline", "random-0", "random-1", "random-2"}
    assert recorded == recorded.with_probes(recorded.probes)
    assert recorded.margin is not None
    assert recorded.margin >= 0.01


def test_in_accuracy_mode_the_latency_is_minimised(finished: Path, home: Path) -> None:
    code, _, err = trimtab(
        home,
        "search",
        "tiny.yaml",
        "--out",
        "guarded",
        "--set",
        "search.mode=accuracy",
        "--set",
        "budget.ratio=1.0",
    )
    assert code == 0, err
    summary = json.loads((home / "guarded" / "summary.json").read_text())
    found = [row for row in rows(home / "guarded") if row[0] == "ddpg-0"]
    best = max(found, key=lambda row: row[4])  # the reward
    assert summary["best"]["number"] == best[1]
    uniform = next(row for row in rows(home / "guarded") if row[0] == "uniform")
    assert json.loads(uniform[5])["latency_s"] <= json.loads(best[5])["latency_s"]
