"""The process that compiles, checks and times operators for `backends.operator_timing`, one after the other.

    python -P -m backends.operator_worker

It answers its parent's requests, pickles behind their length on stdin and stdout; whatever else writes to stdout comes
out on stderr. It lives until stdin closes: that is how it learns that its parent is gone, whatever it is doing.
"""

import os
import pickle
import queue
import resource
import signal
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, BinaryIO, Protocol

import numpy as np

from backends.clock import pace, reading, worked
from backends.measuring import TOLERANCE
from backends.recipes import Recipe, Timing

FRAME_HEADER = struct.Struct("<Q")
"""Bytes of the pickle that follows."""

_SAMPLE_S = 1e-3
_SAMPLES, _ROUND_S = 28, 0.04
_FEW_SAMPLES, _LONGEST_ROUND_S = 6, 0.2
"""A round ends with so many samples, or with a few when its time is up; without them it goes on for longer."""
_ROUNDS = 4
_QUIET_SPREAD = 1.15
"""p90/p10 of a machine left alone; above it more rounds are run, up to `_ROUNDS`, and the steadiest one counts."""
_WARM_UP_S = 3e-3

Call = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Prepared:
    """An operator that is ready to be timed.

    Attributes:
        call: executes it `calls` times.
        calls: executions in one call.
        error: max|a-b| / max|a| of its output against torch's.
        structure: hash of the code.
        elsewhere: the same call on other memory. Where buffers lie can make an operator that moves much a tenth faster
            or slower for as long as they lie there; the median over several places is what networks see.
    """

    call: Call
    calls: int
    error: float
    structure: str
    elsewhere: tuple[Call, ...] = ()


class Engine(Protocol):
    """What runs operators. Made once per process from `threads` and the timer's options."""

    def prepare(self, recipe: Any) -> Prepared:
        """Compiles the operator, runs it once and compares it with torch. Raises whatever its compiler raises."""


@dataclass(frozen=True, slots=True)
class Start:
    """First request: loads the engine. Answered by "ready"."""

    engine: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Prepare:
    """Makes an operator ready to be timed. Answered by "prepared"."""

    recipe: Recipe
    limit_s: float


@dataclass(frozen=True, slots=True)
class Time:
    """Times the operator that was prepared last. Answered by its Timing."""

    limit_s: float


@dataclass(frozen=True, slots=True)
class Failed:
    """Answer to a request that raised, or whose operator computes wrong numbers."""

    reason: str


def main() -> None:
    """Answers requests until stdin closes."""
    source, sink = _private_pipes()
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(source, requests), daemon=True).start()
    worker = Worker()
    while True:
        request = requests.get()
        # The parent kills us at the limit; should it be dead and the engine deaf, the alarm does.
        signal.setitimer(signal.ITIMER_REAL, 2 * getattr(request, "limit_s", 0.0))
        answer = worker.answer(request)
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        payload = pickle.dumps(answer)
        sink.write(FRAME_HEADER.pack(len(payload)) + payload)
        sink.flush()


class Worker:
    """Does what is requested, with one engine."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._prepared: Prepared | None = None

    def answer(self, request: Any) -> Any:
        """The answer to a request; Failed where it raised."""
        try:
            return self._do(request)
        except Exception as error:  # an engine raises what it likes
            return Failed(_one_line(error))

    def _do(self, request: Any) -> Any:
        match request:
            case Start():
                module, _, name = request.engine.partition(":")
                self._engine = getattr(import_module(module), name)(**request.options)
                return "ready"
            case Prepare() if self._engine is not None:
                self._prepared = None  # its memory goes before the next one's comes
                prepared = self._engine.prepare(request.recipe)
                if not prepared.error <= TOLERANCE:
                    return Failed(
                        f"it answers wrongly: relative error {prepared.error:.3g} against torch, "
                        f"at most {TOLERANCE:g} allowed"
                    )
                self._prepared = prepared
                return "prepared"
            case Time() if self._prepared is not None:
                return timing(self._prepared)
        raise ValueError(f"{type(request).__name__} out of turn")


def timing(prepared: Prepared) -> Timing:
    """Reads the clock: rounds of samples of a millisecond until one of them is steady, at most `_ROUNDS` of them.

    The processor's pace is read with each sample, and all samples are brought to their median pace.
    """
    places = (prepared.call, *prepared.elsewhere)
    repetitions = _warm_up(prepared.call)
    best, best_pace, least_spread, runs = np.zeros(3), 0.0, np.inf, 0
    for _ in range(_ROUNDS):
        samples = np.array([sample for call in places for sample in _samples(call, repetitions, len(places))])
        runs += len(samples) * repetitions * prepared.calls
        median_pace = float(np.median(samples[:, 1]))
        found = np.percentile(samples[:, 0] / samples[:, 1], [10, 50, 90]) * median_pace / prepared.calls
        spread = found[2] / found[0]
        if spread < least_spread:
            best, best_pace, least_spread = found, median_pace, spread
        if spread <= _QUIET_SPREAD:
            break
    p10, median, p90 = map(float, best)
    return Timing(median, p10, p90, runs, prepared.error, prepared.structure, best_pace)


def _samples(call: Call, repetitions: int, places: int) -> list[tuple[float, float]]:
    """Seconds of a call, and the pace, in each of this place's share of a round's samples. Those that another process
    broke into count only where all were."""
    whole: list[tuple[float, float]] = []
    broken: list[tuple[float, float]] = []
    begin, preempted = time.perf_counter(), preemptions()
    call()  # its buffers into the cache
    while len(whole) * places < _SAMPLES:
        current = pace()
        start = reading()
        for _ in range(repetitions):
            call()
        end, before, preempted = reading(), preempted, preemptions()
        if preempted == before:
            whole.append((worked(start, end) / repetitions, current))
        else:
            broken.append((worked(start, end) / repetitions, current))
            call()  # whoever broke in has left the cache full of theirs
        if (end[0] - begin) * places >= (_ROUND_S if len(whole) * places >= _FEW_SAMPLES else _LONGEST_ROUND_S):
            break
    return whole or broken


def preemptions() -> int:
    """How often the scheduler has taken a processor away from this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _warm_up(call: Call) -> int:
    """Calls that fill one sample, by the quickest seen while caches and clocks settle."""
    quickest, begin = float("inf"), time.perf_counter()
    while quickest == float("inf") or time.perf_counter() - begin < _WARM_UP_S:
        start = time.perf_counter()
        call()
        quickest = min(quickest, time.perf_counter() - start)
    return max(1, round(_SAMPLE_S / max(quickest, 1e-9)))


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


if __name__ == "__main__":
    from backends import operator_worker  # under the name by which pickles know its classes

    operator_worker.main()
