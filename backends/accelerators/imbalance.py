"""How long the busiest of several lanes takes, where zeros fall at random and lanes wait for each other.

A slice of work gives each lane a number of positions, each of them a nonzero with the same chance. A lane takes a cycle
for each nonzero, so its time on a slice is binomial: mean m, deviation s. What the busiest of L lanes has beyond the
mean, in a slice alone, is about b(L) s, where b(L) is the mean of the largest of L normal numbers (Blom, "Statistical
estimates and transformed beta-variables", 1958). Lanes that may be `queue` slices ahead of the slowest even that out:
with x = b(L) s / m a slice then takes

    m (1 + max(x^2 / (x + 2 (queue - 1)), x / sqrt(slices)))

The first is x where lanes wait after every slice, and falls as x^2 / (2 queue) where they do not: differences of random
walks grow with the root of time, so that a bound twice as far is hit four times as rarely and costs twice as much. The
second is what remains however long the queues: the last lane is waited for once. Nothing here is fitted; a simulation
of the queues is in `tests/unit/test_sparse_imbalance.py`.
"""

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from backends.accelerators.workloads import FloatArray


def busiest(
    positions: npt.ArrayLike,
    density: npt.ArrayLike,
    lanes: npt.ArrayLike,
    slices: npt.ArrayLike,
    queue: int,
    least: int = 0,
) -> FloatArray:
    """Cycles a slice, arrays [N] or numbers; never less where density, positions or lanes grow in number.

    Args:
        positions: of a lane in a slice, at least 1.
        density: share of them that take a cycle, in [0, 1].
        lanes: that have so many positions; a fraction where some have fewer.
        slices: one after the other.
        queue: slices that a lane may be ahead of the slowest, itself included: 1 where all wait for all.
        least: 1 where a slice without a nonzero takes a cycle, too, else 0.
    """
    size, chance, count = (np.asarray(each, dtype=np.float64) for each in (positions, density, lanes))
    deviation = np.sqrt(size * chance * (1 - chance))
    mean = size * chance + least * (1 - chance) ** size
    spread = extreme(count) * deviation
    behind = np.divide(spread**2, spread + 2 * (queue - 1) * mean, out=np.zeros_like(spread), where=spread > 0)
    last = spread / np.sqrt(np.maximum(slices, 1))
    # at most one cycle for each position that some lane has a nonzero at
    most = np.maximum(size * (1 - (1 - chance) ** count), least)
    return np.asarray(np.minimum(most, mean + np.maximum(behind, last)))


def extreme(lanes: npt.ArrayLike) -> FloatArray:
    """Mean of the largest of so many standard normal numbers, after Blom.

    >>> [round(float(extreme(lanes)), 2) for lanes in (1, 2, 16, 64)]
    [0.0, 0.59, 1.77, 2.34]
    """
    count = np.maximum(np.asarray(lanes, dtype=np.float64), 1.0)
    return np.asarray(ndtri((count - 0.375) / (count + 0.25)))
