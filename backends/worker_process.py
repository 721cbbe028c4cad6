"""A child process that works in our place, and crashes or hangs in our place: both ends of the pipes to it.

Requests and answers are pickles behind their length on the child's stdin and stdout; whatever else writes to its stdout
comes out on stderr.
"""

import os
import pickle
import queue
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn

import psutil

FRAME_HEADER = struct.Struct("<Q")
"""Bytes of the pickle that follows."""
_STDERR_BYTES = 4096
_PATIENCE_S = 2.0
"""For what a process that ends does last."""


class Refused(Exception):  # noqa: N818
    """The process answers that it could not do what was asked; it is fit for the next request."""


class Lost(Exception):  # noqa: N818
    """The process died, or overran its time and was killed."""


class Late(Lost):
    """The process overran its time and was killed."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer to a request that could not be done."""

    reason: str


class WorkerProcess:
    """One child and the pipes to it.

    Args:
        module: its `main` calls `serve`.
        threads: that its libraries may use.
    """

    def __init__(self, module: str, threads: int) -> None:
        source = Path(__file__).resolve().parent.parent  # holds the packages, wherever we were started
        environment = {name: value for name, value in os.environ.items() if name != "TVM_USE_RUNTIME_LIB"} | {
            "OMP_NUM_THREADS": str(threads),
            "TVM_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(source), os.environ.get("PYTHONPATH", "")])),
        }
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", module],  # -P: nothing from the folder we stand in
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,  # Ctrl-C in a terminal is for whoever asks; a measurement cut short is no refusal
        )
        if self._child.stdin is None or self._child.stdout is None or self._child.stderr is None:
            raise TypeError("pipes were asked for")
        self._requests, self._answers = self._child.stdin, self._child.stdout
        self._stderr = b""
        self._drain = threading.Thread(target=self._keep_tail, args=(self._child.stderr,), daemon=True)
        self._drain.start()

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._child.poll() is None

    def memory(self) -> int:
        """Bytes of resident memory."""
        try:
            return int(psutil.Process(self._child.pid).memory_info().rss)
        except psutil.Error:
            return 0  # it is gone

    def ask(self, request: Any, limit_s: float) -> Any:
        """The answer to a request.

        Raises:
            Refused: it could not be done.
            Lost: no answer came, in time or at all; the process has been killed.
        """
        payload = pickle.dumps(request)
        deadline = time.monotonic() + limit_s
        try:
            self._requests.write(FRAME_HEADER.pack(len(payload)) + payload)
            self._requests.flush()
            (size,) = FRAME_HEADER.unpack(self._read(FRAME_HEADER.size, deadline))
            answer = pickle.loads(self._read(size, deadline))  # noqa: S301  from the child we started
        except TimeoutError:
            self.end()
            raise Late(f"it did not finish within {limit_s:g} s and was stopped") from None
        except (OSError, EOFError):
            raise Lost(self._ending()) from None
        if isinstance(answer, Failed):
            raise Refused(answer.reason)
        return answer

    def kill(self) -> None:
        """Kills it; `ask` finds it lost."""
        self._child.kill()

    def end(self) -> None:
        """Kills it and lets go of all that it held."""
        self._child.kill()
        self._child.wait()
        self._drain.join(_PATIENCE_S)
        with suppress(OSError):  # what it will not read any more
            self._requests.close()
        self._answers.close()

    def _read(self, size: int, deadline: float) -> bytes:
        """So many bytes of its answer. Raises TimeoutError, or EOFError where there are no more."""
        parts = bytearray()
        descriptor, waiting = self._answers.fileno(), select.poll()
        waiting.register(descriptor, select.POLLIN)
        while len(parts) < size:
            left = deadline - time.monotonic()
            if left <= 0 or not waiting.poll(left * 1e3):
                raise TimeoutError
            part = os.read(descriptor, size - len(parts))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)

    def _ending(self) -> str:
        """How it ended, in words."""
        try:
            status = self._child.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            return "the compiler's process closed its pipe"
        if status < 0:
            return f"the compiler's process was killed by signal {-status}"
        self._drain.join(_PATIENCE_S)
        lines = self._stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        return f"the compiler's process ended with status {status} ({lines[-1].strip()})"

    def _keep_tail(self, stream: IO[bytes]) -> None:
        """Keeps the end of what it writes to stderr; reads all of it, lest it wait for us."""
        with stream:
            while part := os.read(stream.fileno(), _STDERR_BYTES):
                self._stderr = (self._stderr + part)[-_STDERR_BYTES:]


def serve(answer: Callable[[Any], Any]) -> NoReturn:
    """Answers requests until stdin closes: that is how the child learns that its parent is gone.

    Where `answer` raises, whatever that is, the answer is Failed. A request may bear a `limit_s`, in seconds, after
    which the parent kills this process.
    """
    source, sink = _private_pipes()
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(source, requests), daemon=True).start()
    while True:
        request = requests.get()
        # Should the parent be dead at the limit, and the work deaf to that, the alarm kills us.
        signal.setitimer(signal.ITIMER_REAL, 2 * getattr(request, "limit_s", 0.0))
        try:
            if isinstance(request, Exception):
                raise request
            reply = answer(request)
        except Exception as error:
            reply = Failed(_one_line(error))
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        payload = pickle.dumps(reply)
        sink.write(FRAME_HEADER.pack(len(payload)) + payload)
        sink.flush()


def _private_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Stdin and stdout for requests and answers alone: what others read is empty, what they write goes to stderr."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    return source, sink


def _receive(source: BinaryIO, requests: "queue.SimpleQueue[Any]") -> None:
    """Passes requests on; ends the process where there will be no more."""
    while len(header := source.read(FRAME_HEADER.size)) == FRAME_HEADER.size:
        payload = source.read(FRAME_HEADER.unpack(header)[0])
        try:
            requests.put(pickle.loads(payload))  # noqa: S301  from the parent, which started us
        except Exception as error:  # a recipe whose class cannot be imported here
            requests.put(error)
    os._exit(0)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
