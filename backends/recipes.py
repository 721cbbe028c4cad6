"""What the pieces of a latency table say to each other: a recipe, its timing, and why there is none."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


class Recipe(Protocol):
    """One operator, described so fully that its latency depends on nothing else but the device.

    Hashable and picklable. `recipe` is what a table is keyed by; `kind`, `work` and `traffic` are what a regression
    predicts from where a measurement is missing.
    """

    @property
    def kind(self) -> str:
        """The sort of operator, such as "conv2d": operators of one kind are timed by similar code."""

    @property
    def recipe(self) -> str:
        """Canonical text, unique per operator, the same in every process and version of Python."""

    @property
    def work(self) -> float:
        """Multiply-adds, or elements computed where there are none."""

    @property
    def traffic(self) -> float:
        """Bytes read and written."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long one operator took.

    Attributes:
        latency_s: median seconds of one execution.
        p10_s, p90_s: percentiles; far apart where the machine was busy.
        runs: executions that were timed.
        error: max|a-b| / max|a| against torch's result.
        structure: hash of the code that was timed; the same recipe compiled alike has the same one.
        pace_s: how fast the processor ran meanwhile (see `backends.clock`); 0 where that was not read.
    """

    latency_s: float
    p10_s: float
    p90_s: float
    runs: int
    error: float
    structure: str
    pace_s: float = 0.0


class OperatorFailure(Exception):  # noqa: N818  it is a result of measuring, caught by whoever asked, not a user's error
    """An operator could not be measured: the compiler failed, the code crashed, hung or answered wrongly."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Timer(Protocol):
    """Measures operators on one device. `backends.operator_timing` holds the real one."""

    def measure(self, recipe: Recipe) -> Timing:
        """Compiles, checks and times the operator.

        Raises:
            OperatorFailure: it crashed, hung or answered wrongly. The timer is fit for the next operator all the same.
        """

    def close(self) -> None:
        """Ends the processes and frees the folders that the timer holds."""


@runtime_checkable
class SharedTimer(Timer, Protocol):
    """Measures on devices elsewhere, for as many threads at once as there are devices. `backends.remote.fleet` holds
    the real one.

    Attributes:
        notices: a line for each device that was left out.
    """

    notices: list[str]

    def width(self) -> int:
        """How many operators can be measured at once."""
