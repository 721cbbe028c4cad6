"""Costs over many decisions at once as sums of costs over few.

A convolution behind a residual sum of several channel groups reads the sum of their channels: its multiply-accumulates
are a product with each group's, added. The table over all those decisions is huge, those over pairs are small, and an
integer program grows with them. What can be taken apart is found from the numbers, by the decomposition anchored at one
point (cut-HDMR: Rabitz and Alis, "General foundations of high-dimensional model representations", 1999).
"""

from collections.abc import Iterable, Iterator, Sequence
from math import prod

import numpy as np
import numpy.typing as npt

from backends.point_prices import Factor

FloatArray = npt.NDArray[np.float64]
NOTHING = 1e-12
"""Parts this small beside the costs that they are of are rounding errors."""


def separated(factors: Iterable[Factor]) -> list[Factor]:
    """Factors of the same sum, each over as few decisions as can be, none over a part of another's.

    Args:
        factors: whose costs are [budgets, choices of the first decision, ...].
    """
    parts = [part for factor in factors for part in _parts(factor)]
    parts.sort(key=lambda part: (-len(part.decisions), -prod(part.costs.shape), part.decisions))
    found: list[Factor] = []
    for part in parts:
        for index, other in enumerate(found):
            if set(part.decisions) <= set(other.decisions):
                found[index] = _sum(other, part)
                break
        else:
            found.append(part)
    return found


def _parts(factor: Factor) -> Iterator[Factor]:
    """The terms of the decomposition anchored at the last choice of each decision, but those that are nothing."""
    least = NOTHING * np.abs(factor.costs).reshape(len(factor.costs), -1).max(axis=1, initial=0.0)

    def split(costs: FloatArray, axis: int, decisions: Sequence[int]) -> Iterator[Factor]:
        if (np.abs(costs).reshape(len(costs), -1).max(axis=1, initial=0.0) <= least).all():
            return
        if axis == costs.ndim:
            yield Factor(tuple(decisions), costs)
            return
        anchor = np.take(costs, [-1], axis=axis)
        own = factor.decisions[len(factor.decisions) - (costs.ndim - axis)]
        yield from split(anchor[(slice(None),) * axis + (0,)], axis, decisions)
        yield from split(costs - anchor, axis + 1, [*decisions, own])

    yield from split(factor.costs, 1, [])


def _sum(whole: Factor, part: Factor) -> Factor:
    """Both, over the decisions of the first."""
    shape = [len(whole.costs)]
    shape += [
        size if decision in part.decisions else 1
        for decision, size in zip(whole.decisions, whole.costs.shape[1:], strict=True)
    ]
    return Factor(whole.decisions, whole.costs + part.costs.reshape(shape))
