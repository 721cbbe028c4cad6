"""Which choices evaluations fail of: a search that knows them need not find out again."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from search_spaces.space import Point

WITNESSES = 3
"""Failures that a choice has to explain before it is held to be their cause: fewer are chance."""


def causes(counts: Point, points: Sequence[Point], failed: Sequence[bool]) -> npt.NDArray[np.bool_]:
    """The fewest choices that explain the failures: each was never part of anything that succeeded.

    Chosen greedily, as a set cover is (Chvatal, "A greedy heuristic for the set-covering problem", 1979). What no
    single choice explains, such as two that fail together only, is left to the search; so is all where nothing has
    succeeded yet.

    Args:
        counts: of choices, int64 [D].
        points: that were evaluated, [N] of int64 [D].
        failed: which of them failed, [N].

    Returns:
        [D, largest of counts]: whether evaluations fail of that choice of that decision, or there is no such choice.
    """
    found = np.arange(int(counts.max())) >= counts[:, None]
    outcomes = np.array(failed, dtype=np.bool_)
    if outcomes.sum() < WITNESSES or outcomes.all():
        return found
    tried = np.array(points)[:, :, None] == np.arange(found.shape[1])  # [N, D, choices]
    innocent = tried[~outcomes].any(axis=0)
    unexplained = tried[outcomes]
    while True:
        witnesses = np.where(innocent, 0, unexplained.sum(axis=0))
        cause = np.unravel_index(int(witnesses.argmax()), witnesses.shape)
        if witnesses[cause] < WITNESSES:
            return found
        found[cause] = True
        unexplained = unexplained[~unexplained[:, *cause]]


def around(point: Point, found: npt.NDArray[np.bool_]) -> Point:
    """The point [D] with the nearest choice that is no cause, where it has one that is and there is another."""
    moved = point.copy()
    for place in np.flatnonzero(found[np.arange(len(point)), point]).tolist():
        harmless = np.flatnonzero(~found[place])
        if len(harmless):
            moved[place] = harmless[np.abs(harmless - point[place]).argmin()]
    return moved
