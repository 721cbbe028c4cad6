"""Operators timed one at a time in a process of their own, which compiles, crashes and hangs in our place.

The process lives on from operator to operator, since importing a compiler takes seconds; it is replaced where it died,
overran its time, grew too big or has done many. The machine is leased only while the clock is read.
"""

import os
import pickle
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import psutil

from backends.lease import exclusive_lease
from backends.operator_worker import FRAME_HEADER, Failed, Prepare, Start, Time
from backends.recipes import OperatorFailure, Recipe, Timing
from search_spaces.errors import TrimtabError

_START_S = 180.0
"""Importing a compiler, on a busy machine."""
_STDERR_BYTES = 4096
_PATIENCE_S = 2.0
"""For what a process that ends does last."""


class OperatorTimer:
    """Compiles, checks and times operators; fit for the next one whatever the last one did.

    Args:
        engine: "module:Class" of what runs operators (see `backends.operator_worker.Engine`).
        options: keyword arguments of the engine, beside `threads`; they are pickled.
        threads: threads that an operator may use.
        timeout_s: after which compiling and checking, or timing, is given up; a recipe that is tuned first adds its own
            `tuning_s` once.
        recycle_after: operators after which the process is replaced.
        memory_bytes: resident memory beyond which it is.
    """

    def __init__(
        self,
        engine: str,
        options: Mapping[str, Any] | None = None,
        *,
        threads: int = 1,
        timeout_s: float = 60.0,
        recycle_after: int = 200,
        memory_bytes: int = 3 << 30,
    ) -> None:
        self._engine = Start(engine, {"threads": threads, **(options or {})})
        self._threads = threads
        self._timeout_s = timeout_s
        self._recycle_after = recycle_after
        self._memory_bytes = memory_bytes
        self._turn = threading.Lock()
        self._process: _Process | None = None
        self._asked = 0
        self._closed = False

    def measure(self, recipe: Recipe) -> Timing:
        """Compiles, checks and times the operator. Callers in several threads take turns.

        Raises:
            OperatorFailure: the compiler refuses it, or it crashed, hung or answered wrongly.
            TrimtabError: the process does not start, the machine cannot be leased, or the timer is closed.
        """
        with self._turn:
            process = self._ready()
            self._asked += 1
            reusable = False
            try:
                limit_s = self._timeout_s + float(getattr(recipe, "tuning_s", 0.0))
                process.ask(Prepare(recipe, limit_s), limit_s)
                with exclusive_lease():
                    timing: Timing = process.ask(Time(self._timeout_s), self._timeout_s)
                reusable = True
            except _Refused as refused:
                reusable = True
                raise OperatorFailure(str(refused)) from None
            except _Lost as lost:
                self._check_open()
                raise OperatorFailure(str(lost)) from None
            finally:  # after an interrupt, too: the answer that is under way must not be taken for the next one's
                if not reusable or self._asked >= self._recycle_after or process.memory() > self._memory_bytes:
                    self._discard()
            return timing

    def close(self) -> None:
        """Ends the process; a measurement that is under way in another thread fails. May be called again."""
        self._closed = True
        if self._turn.acquire(blocking=False):
            self._discard()
            self._turn.release()
        elif (process := self._process) is not None:
            process.kill()  # whoever measures finds it lost, and tidies up

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ready(self) -> "_Process":
        """The process, a new one if need be: it may have been killed while it had nothing to do."""
        self._check_open()
        if self._process is not None and self._process.alive:
            return self._process
        self._discard()
        process = self._process = _Process(self._threads)
        try:
            process.ask(self._engine, _START_S)
        except (_Refused, _Lost) as error:
            self._discard()
            self._check_open()
            raise TrimtabError(f"the process that times operators does not start: {error}; see `pip check`") from None
        return process

    def _discard(self) -> None:
        process, self._process, self._asked = self._process, None, 0
        if process is not None:
            process.end()

    def _check_open(self) -> None:
        if self._closed:
            raise TrimtabError("the operator timer is closed; make a new one")


class _Refused(Exception):  # noqa: N818
    """The process answers that it could not do what was asked; it is fit for the next request."""


class _Lost(Exception):  # noqa: N818
    """The process died, or overran its time and was killed."""


class _Process:
    """One worker process and the pipes to it."""

    def __init__(self, threads: int) -> None:
        source = Path(__file__).resolve().parent.parent  # holds the packages, wherever we were started
        environment = {name: value for name, value in os.environ.items() if name != "TVM_USE_RUNTIME_LIB"} | {
            "OMP_NUM_THREADS": str(threads),
            "TVM_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(source), os.environ.get("PYTHONPATH", "")])),
        }
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "backends.operator_worker"],  # -P: nothing from the folder we stand in
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
            _Refused: it could not be done.
            _Lost: no answer came, in time or at all; the process has been killed.
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
            raise _Lost(f"it did not finish within {limit_s:g} s and was stopped") from None
        except (OSError, EOFError):
            raise _Lost(self._ending()) from None
        if isinstance(answer, Failed):
            raise _Refused(answer.reason)
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
