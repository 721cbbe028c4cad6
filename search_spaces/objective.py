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
COUNTED: tuple[Metric, ...] = ("macs", "params", "weight_bytes")
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


def violation(cost: Mapping[str, float], constraints: Iterable[Constraint]) -> float:
    """How far the cost is above the limit that it breaks most; 0 where all are kept."""
    return max((each.violation(cost) for each in constraints), default=0.0)


SHARE_ROUNDING = 1e-6
"""What a sum of shares of evaluations may be off, which are floats."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one policy was found to be worth.

    Attributes:
        accuracy: of the search-validation slice, before fine-tuning, larger is better, in [0, 1] for accuracy
            (a metric of the user's that is minimised is negated here).
        cost: metric -> value: "macs", "params", "weight_bytes", and what else the backend knows.
        violation: of the budget that is broken most, see `violation`; 0 where all are kept.
        seconds: wall-clock time the evaluation took.
        error: why the evaluation failed, None where it did not; a failed one has accuracy 0.
        divergence: Kullback-Leibler divergence of what the compressed network answers from what the uncompressed one
            does, nats, mean over the images: 0 where nothing changed, and finer than accuracy; None where not known.
        share: of the validation images that it was found on; 1 for all of them.
        images: that were forwarded for it, calibration included; a backward pass counts as two.
    """

    accuracy: float
    cost: Mapping[str, float]
    violation: float
    seconds: float
    error: str | None = None
    divergence: float | None = None
    share: float = 1.0
    images: int = 0

    @property
    def feasible(self) -> bool:
        """Whether it counts as a result: the policy, as rounded, is within the budget, and saw all the images."""
        return self.error is None and self.violation == 0.0 and self.share == 1.0


def pareto_front(points: Iterable[Sequence[float]]) -> list[int]:
    """Indices of the points that no other point beats: no more of any cost, at least as accurate, and not equal.

    Args:
        points: (cost, accuracy), or (cost, another cost, ..., accuracy); all of one length.

    Returns:
        In the order of rising cost, the first cost first. Of equal points the first stays.
    """
    ordered = sorted(enumerate(points), key=lambda item: (*item[1][:-1], -item[1][-1], item[0]))
    front: list[tuple[int, Sequence[float]]] = []
    for index, point in ordered:
        rivals = front[-1:] if len(point) == 2 else front  # of two objectives the last one is the most accurate so far
        if not any(_beats(other, point) for _, other in rivals):
            front.append((index, point))
    return [index for index, _ in front]


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[-1] >= other[-1] and all(here <= there for here, there in zip(one[:-1], other[:-1], strict=True))


def hypervolume(points: Iterable[Sequence[float]], reference: Sequence[float]) -> float:
    """How much lies between the points' front and a reference point: the volume that at least one point beats.

    Exact for any number of objectives, by slicing one objective after the other (HSO: While et al., A faster algorithm
    for calculating hypervolume, IEEE TEVC 10(1), 2006); n log n for two, exponential in their number.

    Args:
        points: of two entries or more each; (cost, accuracy), or (cost, another cost, ..., accuracy): less of every
            cost is better, and more of the accuracy, which stands last.
        reference: what a point must be better than in every entry to count, in the same order.

    Raises:
        ValueError: a point has not as many entries as the reference.
    """
    boxes = []
    for point in points:
        *costs, accuracy = (place - value for place, value in zip(reference, point, strict=True))
        box = (-accuracy, *costs)
        if all(side > 0.0 for side in box):
            boxes.append(box)
    return _union(boxes)


def _union(boxes: Sequence[tuple[float, ...]]) -> float:
    """Volume of the union of boxes that share the corner at the origin, given by the opposite one."""
    if not boxes:
        return 0.0
    if len(boxes[0]) == 1:
        return max(side for (side,) in boxes)
    ordered = sorted(boxes, reverse=True)
    volume, slab = 0.0, list[tuple[float, ...]]()
    for box, depth in zip(ordered, [below[0] for below in ordered[1:]] + [0.0], strict=True):
        face = box[1:]
        if not any(_within(face, other) for other in slab):
            slab = [other for other in slab if not _within(other, face)] + [face]
        if depth < box[0]:
            volume += (box[0] - depth) * _union(slab)
    return volume


def _within(inner: tuple[float, ...], outer: tuple[float, ...]) -> bool:
    return all(one <= other for one, other in zip(inner, outer, strict=True))
