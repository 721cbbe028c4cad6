"""A process that tuning may cost: it runs `backends.tvm.tuning_search`, and is killed where it hangs.

    python -P -m backends.tvm.tuning_worker DESCRIPTOR

DESCRIPTOR is its end of a pipe from the process that started it: requests and answers are pickles on it.
"""

import multiprocessing
import os
import queue
import subprocess
import sys
import tempfile
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from backends.tvm import tuning_search


class TuningFailure(Exception):  # noqa: N818  it is a result, caught by whoever asked, not a user's error
    """The process crashed, hung or could not do what was asked."""


class TuningProcess:
    """Runs functions of `tuning_search` in a child, started when first asked and again after a failure.

    Args:
        threads: threads that the code may use.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._running: tuple[subprocess.Popen[bytes], Connection[Any, Any]] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as this object

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()
        self._log.close()

    def call(self, function: str, *arguments: Any, timeout_s: float) -> Any:
        """What the function of `tuning_search` returns.

        Raises:
            TuningFailure: it raised, crashed or took longer than `timeout_s`.
        """
        child, pipe = self._running = self._running or self._start()
        try:
            pipe.send((function, arguments))
            if not pipe.poll(timeout_s):
                self._stop()
                raise TuningFailure(f"it did not end within {timeout_s:g} s")
            done, value = pipe.recv()
        except (OSError, EOFError):
            code = child.wait()
            self._stop()
            ending = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise TuningFailure(f"its process {ending}{self._last_words()}") from None
        if not done:
            raise TuningFailure(value)
        return value

    def _start(self) -> "tuple[subprocess.Popen[bytes], Connection[Any, Any]]":
        root = str(Path(__file__).resolve().parents[2])
        environment = os.environ | {
            "OMP_NUM_THREADS": str(self._threads),
            "TVM_NUM_THREADS": str(self._threads),
            "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")])),
        }
        ours, theirs = multiprocessing.Pipe()
        with theirs:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "backends.tvm.tuning_worker", str(theirs.fileno())],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                pass_fds=[theirs.fileno()],
            )
        return child, ours

    def _stop(self) -> None:
        if self._running is not None:
            child, pipe = self._running
            pipe.close()
            child.kill()
            child.wait()
        self._running = None

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        self._log.seek(0)
        self._log.truncate()
        return f" ({lines[-1]})" if lines else ""


def main(descriptor: int) -> None:
    """Answers requests until the other end is closed."""
    requests: queue.SimpleQueue[tuple[str, tuple[Any, ...]]] = queue.SimpleQueue()
    with Connection(descriptor) as pipe:
        threading.Thread(target=_receive, args=(pipe, requests), daemon=True).start()
        while True:
            function, arguments = requests.get()
            try:
                answer = True, getattr(tuning_search, function)(*arguments)
            except Exception as error:  # whatever TVM raises; the parent decides what it means
                answer = False, tuning_search.first_line(error)
            pipe.send(answer)


def _receive(pipe: "Connection[Any, Any]", requests: "queue.SimpleQueue[tuple[str, tuple[Any, ...]]]") -> None:
    """Passes requests on; ends the process, in the midst of a search, too, where nobody waits for it any more."""
    while True:
        try:
            requests.put(pipe.recv())
        except (EOFError, OSError):
            os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
