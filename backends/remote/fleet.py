"""Devices of one kind at work: whichever is free measures, and one that fails is left out.

What a device could not do is tried on another one. Where that succeeds, the first is to blame and gets nothing more to
do; so is one that is unfit for anything, or fails several times in a row. A new run tries it again.
"""

import logging
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from backends.operator_timing import START_S
from backends.recipes import OperatorFailure, Recipe, Timing
from backends.remote.device import Place, RemoteDevice
from backends.remote.requests import Close, Compile, Fault, Open, Start, TimeOperator
from backends.remote.tracker import Tracker
from backends.worker_process import Late, Lost, Refused, WorkerProcess
from search_spaces.errors import InputError, TrimtabError

_COMPILE_S = 60.0
_FAULTS = 3
"""In a row, after which a device is left out though no other one has done better."""
_MOST_WORKERS = 16
_MEMORY_BYTES = 1 << 30
"""Of a worker, beyond which it is replaced; it begins with 400 MB."""

_log = logging.getLogger(__name__)


class Fleet:
    """The devices of one kind, as a `backends.recipes.Timer` that several threads use at once.

    Args:
        device: their kind. Nothing is connected before something is asked.
        threads: that code may use on a device.

    Attributes:
        notices: a line for each device that was left out; logged as warnings, too.
    """

    def __init__(self, device: RemoteDevice, threads: int = 1) -> None:
        self.device = device
        self.threads = threads
        self.notices: list[str] = []
        self._tracker = Tracker(device.tracker, device.timeout_s)
        self._state = threading.Lock()
        self._idle: list[WorkerProcess] = []
        self._busy: list[WorkerProcess] = []
        self._left_out: dict[str, str] = {}
        self._faults: Counter[str] = Counter()
        self._reasons: dict[str, str] = {}
        self._suspects: dict[str, str] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="trimtab-remote-", ignore_cleanup_errors=True)
        self._closed = False

    @property
    def left_out(self) -> Mapping[str, str]:
        """Devices that get nothing more to do, by name, and why."""
        return dict(self._left_out)

    def width(self) -> int:
        """How many devices can measure at once. Raises as `backends.remote.tracker.Tracker.devices`."""
        usable = set(self._tracker.devices(self.device.key)) - self._left_out.keys()
        return max(1, min(len(usable), _MOST_WORKERS))

    def measure(self, recipe: Recipe) -> Timing:
        """Compiles the operator here, checks and times it on a device.

        Asked again for one that failed, it takes another device where there is one.

        Raises:
            OperatorFailure: the compiler refuses it, or the device was lost, hung or answered wrongly.
            TrimtabError: no device is to be had, or the fleet is closed.
        """
        with self.worker() as worker:
            limit_s = _COMPILE_S + float(getattr(recipe, "tuning_s", 0.0))
            try:
                worker.ask(Compile(recipe, limit_s), limit_s)
            except (Refused, Lost) as error:
                raise OperatorFailure(str(error)) from None
            limit_s = self.device.timeout_s
            timing: Timing = self.on_a_device(
                recipe.recipe, lambda place: worker.ask(TimeOperator(place, limit_s), limit_s)
            )
            return timing

    def require(self) -> None:
        """See that what is asked for is there: the tracker, devices of that kind, and what makes code for them.

        Raises:
            InputError: the tracker is none, or knows no such devices; or code for their processor cannot be made here.
            TrimtabError: the tracker does not answer.
        """
        from backends.tvm.linking import linker

        self._tracker.devices(self.device.key)
        linker(self.device.cpu(self.threads))

    def check(self) -> None:
        """See that a device can be had: it answers, its TVM is this one, and it computes as it should.

        Raises:
            TrimtabError: none can be had.
        """
        limit_s, reasons = self.device.timeout_s, []
        for _ in range(max(_FAULTS, self.width())):
            try:
                with self.worker() as worker:
                    self.on_a_device("check", lambda place: worker.ask(Open(place, limit_s), limit_s))
                    worker.ask(Close(limit_s), limit_s)
                return
            except (OperatorFailure, Lost) as failure:
                reasons.append(str(failure))
        raise TrimtabError(f"no device of kind {self.device.key!r} can be used: {'; '.join(dict.fromkeys(reasons))}")

    @contextmanager
    def worker(self) -> Iterator[WorkerProcess]:
        """A process that compiles and talks to devices, for the block alone.

        Raises:
            TrimtabError: it does not start, or the fleet is closed.
        """
        worker = self._taken()
        reusable = False
        try:
            yield worker
            reusable = True
        except OperatorFailure:
            reusable = True
            raise
        finally:  # after an interrupt an answer may be under way, which must not be taken for the next one's
            with self._state:
                self._busy.remove(worker)
                keep = reusable and not self._closed and worker.alive and worker.memory() < _MEMORY_BYTES
                if keep:
                    self._idle.append(worker)
            if not keep:
                worker.end()

    def on_a_device(self, job: str, use: Callable[[Place], Any]) -> Any:
        """Has a device do something, another one than failed in it before where there is one.

        Args:
            job: what it is.
            use: asks a worker for it; Fault, Lost or Refused where the device fails.

        Returns:
            What `use` does.

        Raises:
            OperatorFailure: the device failed.
            TrimtabError: no device is to be had, or the fleet is closed.
        """
        while True:
            place = self._place(self._suspects.get(job))
            try:
                answer = use(place)
            except Late as late:
                answer = Fault(f"it did not answer within {self.device.timeout_s:g} s")
                _log.debug("%s: %s", place.name, late)
            except (Lost, Refused) as error:
                answer = Fault(str(error))
            self._check_open()
            if not isinstance(answer, Fault):
                self._succeeded(job, place)
                return answer
            self._failed(job, place, answer)
            if not answer.unfit:
                raise OperatorFailure(f"{place.name}: {answer.reason}")

    def close(self) -> None:
        """Ends the workers; what is under way in other threads fails. May be called again."""
        with self._state:
            self._closed = True
            idle, self._idle = self._idle, []
            for worker in self._busy:
                worker.kill()  # whoever uses it finds it lost, and tidies up
        for worker in idle:
            worker.end()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _taken(self) -> WorkerProcess:
        with self._state:
            self._check_open()
            while self._idle:
                worker = self._idle.pop()
                if worker.alive:
                    self._busy.append(worker)
                    return worker
                worker.end()
            worker = WorkerProcess("backends.remote.worker", 1)
            self._busy.append(worker)
        started = False
        try:
            worker.ask(Start(self.device, self.threads, Path(tempfile.mkdtemp(dir=self._folder.name))), START_S)
            started = True
        except (Refused, Lost) as error:
            self._check_open()
            raise TrimtabError(f"code for {self.device.target} cannot be made: {error}") from None
        finally:
            if not started:
                with self._state:
                    self._busy.remove(worker)
                worker.end()
        return worker

    def _place(self, avoided: str | None) -> Place:
        """A device that is free and not left out; the avoided one where it is handed out again and no other is."""
        deadline = time.monotonic() + self.device.timeout_s
        passed_over = False
        while (left_s := deadline - time.monotonic()) > 0:
            registered = self._registered()
            if registered and registered <= self._left_out.keys():
                raise TrimtabError(f"no device of kind {self.device.key!r} is left ({self._told()})")
            place = self._tracker.request(self.device.key, left_s)
            self._check_open()
            if place is None:
                break
            if place.name in self._left_out:
                continue  # not used, its server comes back to the tracker some seconds later
            if place.name == avoided and not passed_over and registered - self._left_out.keys() - {avoided}:
                passed_over = True
                continue
            return place
        raise TrimtabError(
            f"no device of kind {self.device.key!r} was to be had at the tracker {self.device.tracker} within "
            f"{self.device.timeout_s:g} s ({self._told() or 'all are busy, or do not answer'})"
        )

    def _registered(self) -> set[str]:
        """The devices that the tracker knows. There may be none for a while where their servers are started again."""
        try:
            return set(self._tracker.devices(self.device.key))
        except InputError:
            if not self._reasons:
                raise
            return set()

    def _told(self) -> str:
        """What was wrong with each device that failed, last."""
        return "; ".join(f"{name}: {reason}" for name, reason in self._reasons.items())

    def _succeeded(self, job: str, place: Place) -> None:
        with self._state:
            self._faults[place.name] = 0
            suspect = self._suspects.pop(job, place.name)
            if suspect != place.name:
                self._leave_out(suspect)

    def _failed(self, job: str, place: Place, fault: Fault) -> None:
        with self._state:
            self._faults[place.name] += 1
            self._reasons[place.name] = fault.reason
            self._suspects.setdefault(job, place.name)
            if fault.unfit or self._faults[place.name] >= _FAULTS:
                self._leave_out(place.name)

    def _leave_out(self, name: str) -> None:
        if name in self._left_out:
            return
        self._left_out[name] = self._reasons[name]
        self.notices.append(f"device {name} of kind {self.device.key!r} is left out: {self._reasons[name]}")
        _log.warning(self.notices[-1])

    def _check_open(self) -> None:
        if self._closed:
            raise TrimtabError("the devices are let go of; make a new fleet")
