"""Which choices evaluations fail of: a search that knows them need not find out again."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from search_spaces.space import Point

WITNESSES = 3
"""Failures that a choice has to explain before it is held to be their cause: fewer are chance."""


class Failures:
    """What is known of the evaluations that failed.

    Args:
        counts: of choices, int64 [D].

    Attributes:
        causes: [D, largest of counts]: whether evaluations fail of that choice of that decision, or there is no such
            choice.
        points: that failed, int64 [D] each.
        innocent: [D, largest of counts]: choices that were part of something that succeeded.
    """

    def __init__(self, counts: Point) -> None:
        self._choices = np.arange(int(counts.max()))
        self._missing = self._choices >= counts[:, None]
        self.causes: npt.NDArray[np.bool_] = self._missing
        self.points: list[Point] = []
        self.innocent: npt.NDArray[np.bool_] = np.zeros_like(self._missing)

    def add(self, point: Point, failed: bool) -> None:
        """Take in one more evaluation."""
        if failed:
            self.points.append(point)
        else:
            self.innocent[np.arange(len(point)), point] = True
        if len(self.points) >= WITNESSES:
            self.causes = self._found()

    def restore(self, points: Sequence[Point], innocent: npt.NDArray[np.bool_]) -> None:
        """Take over what an earlier one knew."""
        self.points, self.innocent = list(points), innocent.copy()
        self.causes = self._found()

    def _found(self) -> npt.NDArray[np.bool_]:
        """The fewest choices that explain the failures: each was never part of anything that succeeded.

        Chosen greedily, as a set cover is (Chvatal, "A greedy heuristic for the set-covering problem", 1979). What no
        single choice explains, such as two that fail together only, is left to the search; so is all where nothing has
        succeeded yet.
        """
        found = self._missing.copy()
        if len(self.points) < WITNESSES or not self.innocent.any():
            return found
        unexplained = np.array(self.points)[:, :, None] == self._choices  # [N, D, choices]
        while True:
            witnesses = np.where(self.innocent, 0, unexplained.sum(axis=0))
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
