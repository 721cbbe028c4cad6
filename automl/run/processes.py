"""Several runs of one experiment: each in a process of its own, several at once where there are CPUs for them."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from automl.config import Config
from automl.errors import RunStoppedError
from automl.orchestration.ray_session import cpus_at_hand, cpus_of
from automl.run.directory import RunDirectory
from automl.signals import StopSignal

POLL_S = 1.0
PATIENCE_S = 60.0
"""For a run that is told to stop: it ends at the next point that it can be resumed from."""

Watch = Callable[[Sequence[RunDirectory]], None]


def fitting(configs: Iterable[Config]) -> int:
    """How many of the runs with these configs have CPUs for their evaluators, at once; at least 1."""
    cpus = cpus_at_hand()
    return max(1, cpus // max(cpus_of(config.search, cpus) for config in configs))


def drive(runs: Sequence[RunDirectory], parallel: int, stop: StopSignal, watch: Watch) -> None:
    """Go on with runs until each has ended, be it well or not: its own `run.json` says how.

    Args:
        runs: that exist.
        parallel: how many at once.
        stop: whether to stop.
        watch: told of those that are being driven, every second.

    A run whose process is still ending, for it lost the one that started it, is waited for.

    Raises:
        RunStoppedError: told to stop; the runs can be resumed.
    """
    waiting = list(runs)
    running: list[tuple[RunDirectory, subprocess.Popen[bytes]]] = []
    try:
        while waiting or running:
            while waiting and len(running) < parallel and not waiting[0].driven():
                run = waiting.pop(0)
                running.append((run, _started(run)))
            time.sleep(POLL_S)
            for _, process in running:
                if process.poll() is not None:
                    _ended(process)
            running = [(run, process) for run, process in running if process.returncode is None]
            watch([run for run, _ in running])
            stop.check()
    finally:
        for _, process in running:
            process.terminate()
        for _, process in running:
            _ended(process)
    if stop.requested:  # a signal from a terminal reaches the runs first
        raise RunStoppedError("stopped")


def _started(run: RunDirectory) -> subprocess.Popen[bytes]:
    with (run.path / "output.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", __name__, str(run.path)],
            stdin=subprocess.PIPE,  # held open for as long as we live, see `main`
            stdout=log,
            stderr=log,
        )


def _ended(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin is not None:
        process.stdin.close()


def main(path: Path) -> int:
    """Go on with a run until it ends, or whoever started this process dies."""
    from automl.cli import main as command

    threading.Thread(target=_stop_with_parent, daemon=True).start()
    return command(["resume", str(path)])


def _stop_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing is ever written: it returns where the other end is gone
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
