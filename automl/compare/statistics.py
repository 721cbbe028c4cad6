"""What several seeds come to: quartiles, intervals, and the best so far as it rises."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

import numpy as np

from automl.compare.runs import Search

RESAMPLES = 10_000
CONFIDENCE = 0.95
Effort = Literal["evaluations", "seconds"]


@dataclass(frozen=True, slots=True)
class Quartiles:
    """Of a figure over seeds; minus infinity where so many seeds found no feasible policy."""

    lower: float
    median: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quartiles":
        """The quartiles of at least one value."""
        return cls(*(quantile(values, share) for share in (0.25, 0.5, 0.75)))


@dataclass(frozen=True, slots=True)
class Difference:
    """How far an algorithm is from the best one.

    Attributes:
        mean: over the seeds that both were run under, of their differences; below 0 where it is worse.
        low, high: 95 % interval of the mean; None with fewer than two seeds.
        pairs: number of those seeds.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int

    @classmethod
    def of(cls, differences: Sequence[float]) -> "Difference":
        """The mean of at least one difference, and its interval.

        The interval is the percentile bootstrap's: seeds are drawn anew with replacement, both algorithms' results of a
        seed together (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
        """
        mean = float(np.mean(differences))
        if len(differences) < 2:
            return cls(mean, None, None, len(differences))
        drawn = np.random.default_rng(0).choice(differences, (RESAMPLES, len(differences)))
        low, high = np.quantile(drawn.mean(axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return cls(mean, float(low), float(high), len(differences))

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low is not None and self.high is not None and not self.low <= 0.0 <= self.high


def quantile(values: Sequence[float], share: float) -> float:
    """A quantile by linear interpolation, as NumPy's; next to a minus infinity it is that, and not a NaN.

    >>> quantile([3.0, float("-inf"), 1.0], 0.75)
    2.0
    """
    ordered = sorted(values)
    place = (len(ordered) - 1) * share
    index = int(place)
    low, rest = ordered[index], place - index
    return low if rest == 0.0 or low == -inf else low + rest * (ordered[index + 1] - low)


def paired_difference(one: Sequence[Search], other: Sequence[Search]) -> Difference | None:
    """How much worse or better than `one` the `other` algorithm ended, seed by seed.

    An algorithm that no seed changes stands beside every seed of the other.

    Returns:
        None where no seed pairs up, or in one of those that do an algorithm found no feasible policy.
    """
    ones, others = ({search.seed: search.best for search in searches} for searches in (one, other))
    if one[0].seedless and not other[0].seedless:
        ones = dict.fromkeys(others, one[0].best)
    elif other[0].seedless and not one[0].seedless:
        others = dict.fromkeys(ones, other[0].best)
    differences = [others[seed] - ones[seed] for seed in sorted(ones.keys() & others.keys())]
    if not differences or not np.isfinite(differences).all():
        return None
    return Difference.of(differences)


def best_so_far(searches: Sequence[Search], effort: Effort) -> list[tuple[float, Quartiles]]:
    """Quartiles over seeds of the best feasible accuracy, wherever they change, against what was spent.

    A search that is finished keeps its best; what one that is not finished would have found is not known, and there the
    curve ends.

    Returns:
        By rising effort; the last entry is where the curve ends.
    """
    ends = [float(getattr(search, effort)) for search in searches]
    open_ends = [end for end, search in zip(ends, searches, strict=True) if not search.finished]
    end = min(open_ends) if open_ends else max(ends)
    changes = [[float(getattr(each, effort)) for each in search.improvements] for search in searches]
    places = sorted({place for places in changes for place in places if place < end} | {end})
    return [
        (place, Quartiles.of([_reached(search, at, place) for search, at in zip(searches, changes, strict=True)]))
        for place in places
    ]


def _reached(search: Search, changes: Sequence[float], place: float) -> float:
    index = bisect_right(changes, place)
    return search.improvements[index - 1].value if index else -inf
