"""The process that compiles, checks and times operators for `backends.operator_timing`, one after the other.

    python -P -m backends.operator_worker

It answers its parent's requests as long as its stdin is open (see `backends.worker_process`).
"""

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from backends.clock import pace, reading, worked
from backends.measuring import TOLERANCE
from backends.recipes import Recipe, Timing
from backends.worker_process import Failed, serve

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


def main() -> None:
    """Answers requests until stdin closes."""
    serve(Worker().answer)


class Worker:
    """Does what is requested, with one engine."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._prepared: Prepared | None = None

    def answer(self, request: Any) -> Any:
        """The answer to a request. Raises whatever the engine raises."""
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
    """Reads the clock: samples of a millisecond, and with each of them the processor's pace."""
    places = (prepared.call, *prepared.elsewhere)
    repetitions = _warm_up(prepared.call)

    def samples() -> list[tuple[float, float]]:
        found = [sample for call in places for sample in _samples(call, repetitions, len(places))]
        return [(seconds / prepared.calls, current) for seconds, current in found]

    return steadiest(samples, repetitions * prepared.calls, prepared.error, prepared.structure)


def steadiest(
    samples: Callable[[], Sequence[tuple[float, float]]],
    executions: int,
    error: float,
    structure: str,
    rounds: int = _ROUNDS,
) -> Timing:
    """Takes rounds of samples until one of them is steady, at most `_ROUNDS` of them; the steadiest counts.

    Args:
        samples: of one round: seconds of one execution, and the processor's pace meanwhile. They are brought to their
            median pace.
        executions: in one sample.
        error, structure: of what is timed.
        rounds: where there is time for fewer.
    """
    best, best_pace, least_spread, runs = np.zeros(3), 0.0, np.inf, 0
    for _ in range(min(rounds, _ROUNDS)):
        found = np.array(samples())
        runs += len(found) * executions
        median_pace = float(np.median(found[:, 1]))
        percentiles = np.percentile(found[:, 0] / found[:, 1], [10, 50, 90]) * median_pace
        spread = percentiles[2] / percentiles[0]
        if spread < least_spread:
            best, best_pace, least_spread = percentiles, median_pace, spread
        if spread <= _QUIET_SPREAD:
            break
    p10, median, p90 = map(float, best)
    return Timing(median, p10, p90, runs, error, structure, best_pace)


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


if __name__ == "__main__":
    from backends import operator_worker  # under the name by which pickles know its classes

    operator_worker.main()
