"""Random points within the budget: what every other searcher has to beat."""

from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from automl.searchers.base import State
from automl.searchers.points.base import PointSearcher
from search_spaces.objective import Evaluation
from search_spaces.policy import CompressionPolicy
from search_spaces.space import Point, SearchSpace

LEVELS = 32
SPREAD = 4.0
"""How closely the decisions of a point follow its level."""


def random_point(space: SearchSpace, generator: np.random.Generator) -> Point:
    """A point that is as large in all its decisions as a random share says, give or take.

    Uniformly random decisions would all cost about the same, in the middle of the space, whatever the budget.
    """
    levels = generator.random(1)
    point: Point = _at(space, levels, generator.random(len(space.counts)))[0]
    return point


class RandomPoints(PointSearcher):
    """Random points of the same budget: each is drawn at several levels, of which the highest within it is taken.

    Lowering a dear point instead (`SearchSpace.repair`) would leave it lopsided: too weak an opponent. Of its results
    it keeps what it needs to repeat nothing and to go around failures: a million of them stay small.
    """

    def propose(self) -> Point:
        """As large as the budget allows, give or take."""
        levels, chances = np.linspace(1.0, 0.0, LEVELS), self.generator.random(len(self.space.counts))

        def at(number: int) -> npt.NDArray[np.int64]:
            return _at(self.space, levels[number : number + 1], chances)

        def kept(number: int) -> bool:
            return bool(self.problem.kept(at(number))[0])

        # A bisection, because prices may have to be measured.
        found: Point = at(bisect_left(range(LEVELS - 1), True, key=kept))[0]
        return found

    def tell(self, policy: CompressionPolicy, evaluation: Evaluation) -> float | None:
        """The accuracy; nothing is learned from it."""
        reward = super().tell(policy, evaluation)
        self.results.clear()
        return reward

    def state(self) -> State:
        """What was proposed, what failed, and the generator."""
        shape = (-1, len(self.space.decisions))
        arrays = {
            "seen": np.sort(np.fromiter(self._seen, dtype=np.uint64, count=len(self._seen))),
            "failed": np.array(self._failures.points, dtype=np.int64).reshape(shape),
            "innocent": self._failures.innocent,
            "pending": np.array(list(self._pending), dtype=np.int64).reshape(shape),
        }
        return arrays, {"generator": self.generator.bit_generator.state, "worst": self._worst}

    def restore(self, arrays: Mapping[str, np.ndarray[Any, Any]], values: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        self._seen = set(arrays["seen"].tolist())
        self._failures.restore(list(arrays["failed"]), arrays["innocent"])
        self._pending = deque(arrays["pending"])
        self._worst = float(values["worst"])
        self.generator.bit_generator.state = values["generator"]


def _at(space: SearchSpace, levels: npt.NDArray[np.float64], chances: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Points [L, D] at levels [L]: beta distributed shares of the choices, of those probabilities [D]."""
    level = levels[:, None]
    shares = betaincinv(1.0 + SPREAD * level, 1.0 + SPREAD * (1.0 - level), chances[None])
    points: npt.NDArray[np.int64] = np.minimum((shares * space.counts).astype(np.int64), space.counts - 1)
    return points
