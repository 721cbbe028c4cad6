"""What a search is after: a budget it must keep, and what an evaluation of a policy found."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Metric = Literal["macs", "params", "weight_bytes", "latency_s", "modelled_latency_s", "energy_j"]
UNITS: Mapping[str, str] = {
    "macs": "MACs",
    "params": "parameters",
    "weight_bytes": "bytes",
    "latency_s": "s",
    "modelled_latency_s": "s",
    "energy_j": "J",
}
MODELLED = ("modelled_latency_s", "energy_j")
"""Metrics of an accelerator's model; `latency_s` is measured, or a sum of what was."""
_PARTS = ((1e-4, "m", 1e3, 3), (0.0, "µ", 1e6, 2))


@dataclass(frozen=True, slots=True)
class Constraint:
    """`cost[metric] <= limit`, the limit in the metric's own unit (never a ratio)."""

    metric: Metric
    limit: float

    @property
    def unit(self) -> str:
        """Unit of the limit, for people."""
        return UNITS[self.metric]

    def amount(self, value: float) -> str:
        """A cost in the metric as people read it."""
        if self.unit not in ("s", "J"):
            return f"{value:,.0f} {self.unit}"
        prefix, factor, digits = next(part[1:] for part in _PARTS if value >= part[0])
        return f"{factor * value:.{digits}f} {prefix}{self.unit}"

    def violation(self, cost: Mapping[str, float]) -> float:
        """How far the cost is above the limit, relative to it; 0 where it is kept."""
        return max(0.0, cost[self.metric] / self.limit - 1.0)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one policy was found to be worth.

    Attributes:
        accuracy: of the search-validation slice, before fine-tuning, larger is better, in [0, 1] for accuracy
            (a metric of the user's that is minimised is negated here).
        cost: metric -> value: "macs", "params", "weight_bytes", and what else the backend knows.
        violation: see `Constraint.violation`; 0 means feasible.
        seconds: wall-clock time the evaluation took.
        error: why the evaluation failed, None where it did not; a failed one has accuracy 0.
    """

    accuracy: float
    cost: Mapping[str, float]
    violation: float
    seconds: float
    error: str | None = None

    @property
    def feasible(self) -> bool:
        """Whether the policy, after rounding to real channel counts, is within the budget."""
        return self.error is None and self.violation == 0.0


def pareto_front(points: Iterable[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, accuracy) that no other point beats: cheaper and at least as accurate.

    Returned in the order of rising cost. Of equal points the first stays.
    """
    ordered: Sequence[tuple[int, tuple[float, float]]] = sorted(
        enumerate(points), key=lambda item: (item[1][0], -item[1][1], item[0])
    )
    front: list[int] = []
    best = float("-inf")
    for index, (_, accuracy) in ordered:
        if accuracy > best:
            front.append(index)
            best = accuracy
    return front
