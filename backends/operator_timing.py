"""Operators timed one at a time in a process of their own, which compiles, crashes and hangs in our place.

The process lives on from operator to operator, since importing a compiler takes seconds; it is replaced where it died,
overran its time, grew too big or has done many. The machine is leased only while the clock is read.
"""

import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from backends.lease import exclusive_lease
from backends.operator_worker import Prepare, Start, Time
from backends.recipes import OperatorFailure, Recipe, Timing
from backends.worker_process import Lost, Refused, WorkerProcess
from search_spaces.errors import TrimtabError

START_S = 180.0
"""Importing a compiler, on a busy machine."""


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
        self._process: WorkerProcess | None = None
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
            except Refused as refused:
                reusable = True
                raise OperatorFailure(str(refused)) from None
            except Lost as lost:
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

    def _ready(self) -> WorkerProcess:
        """The process, a new one if need be: it may have been killed while it had nothing to do."""
        self._check_open()
        if self._process is not None and self._process.alive:
            return self._process
        self._discard()
        process = self._process = WorkerProcess("backends.operator_worker", self._threads)
        try:
            process.ask(self._engine, START_S)
        except (Refused, Lost) as error:
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
