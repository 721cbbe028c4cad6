"""Whole runs as a user starts them: the command in a process of its own, with a cache and a home of its own."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil

PATIENCE_S = 300


def start(
    home: Path,
    *arguments: str,
    folder: Path | None = None,
    within: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """Start the command in a folder, by default that of its home, by another command and with more variables."""
    variables = {
        **os.environ,
        "TRIMTAB_CACHE": str(home / "cache"),
        "HOME": str(home),
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
        **(environment or {}),
    }
    return subprocess.Popen(
        [*within, sys.executable, "-m", "automl", *arguments],
        cwd=folder or home,
        env=variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # a process group of its own, as a terminal gives one
    )


def trimtab(home: Path, *arguments: str, **how: Any) -> tuple[int, str, str]:
    """Exit code, output and errors of the command; see `start`."""
    process = start(home, *arguments, **how)
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def wait_until(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    """Wait for something to happen while a process runs; it must not end before."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def listening(process: psutil.Process) -> set[str]:
    """Addresses that a process and its children accept connections at."""
    found = set()
    for member in (process, *process.children(recursive=True)):
        try:
            connections = member.net_connections("tcp")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        found |= {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN}
    return found


@contextmanager
def none_left_behind() -> Iterator[list[psutil.Process]]:
    """Processes of killed drivers, to be added to the list: they and all that is started meanwhile are gone in the end.

    Ray's two agents try to report their raylet's death for a minute before they follow it.
    """
    left: list[psutil.Process] = []
    before = set(psutil.Process().children(recursive=True))
    yield left
    left.extend(set(psutil.Process().children(recursive=True)) - before)
    psutil.wait_procs(left, timeout=100)
    assert not [process for process in left if alive(process)]


def record(run: Path) -> list[tuple[Any, ...]]:
    """Everything that stands in a run's store, times aside."""
    with closing(_connect(run)) as connection:
        searches = connection.execute("SELECT * FROM searches ORDER BY name").fetchall()
        evaluations = connection.execute(
            "SELECT search, number, digest, policy, accuracy, reward, divergence, share, images, cost, violation, "
            "feasible, error FROM evaluations ORDER BY search, number"
        ).fetchall()
    return [*searches, *evaluations]


def evaluations(run: Path) -> int:
    """How many stand in a run's store by now."""
    try:
        with closing(_connect(run)) as connection:
            return int(connection.execute("SELECT count(*) FROM evaluations").fetchone()[0])
    except sqlite3.Error:
        return 0


def kill_after(
    process: subprocess.Popen[str], run: Path, chance: random.Random, *, at_least: int
) -> list[psutil.Process]:
    """Kill a driver a random moment after so many evaluations are on record; returns its former family."""
    wait_until(process, lambda: evaluations(run) >= at_least and (run / "baseline.safetensors").exists())
    time.sleep(chance.uniform(0.0, 1.0))
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return family


def _connect(run: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{run / 'trials.sqlite'}?mode=ro", uri=True)
