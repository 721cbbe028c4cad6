"""Simulated annealing (Kirkpatrick, Gelatt and Vecchi, "Optimization by simulated annealing", Science 1983).

A neighbour has a random decision moved by one choice and the others balanced along the budget, see `moves`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp
from typing import Any

import numpy as np

from automl.searchers.base import State
from automl.searchers.points.base import PointProblem, PointSearcher, Result
from automl.searchers.points.moves import balance, exchange
from automl.searchers.points.random import random_point
from search_spaces.errors import InputError
from search_spaces.space import Point


@dataclass(frozen=True)
class AnnealingOptions:
    """What can be set; the defaults suit 100 to 400 evaluations.

    Attributes:
        warmup: share of the evaluations that are random points; their spread is the unit of the temperature (White,
            "Concepts of scale in simulated annealing", ICCD 1984), the best of them is where the walk starts.
        hot, cold: temperature at the start and at the end, in that unit; it falls geometrically.
        onward: probability that one more decision is moved.
    """

    warmup: float = 0.1
    hot: float = 0.1
    cold: float = 0.005
    onward: float = 0.25

    def __post_init__(self) -> None:
        if not 0.0 < self.warmup < 1.0:
            raise InputError(f"annealing: warmup lies in (0, 1), got {self.warmup}")
        if not 0.0 < self.cold <= self.hot:
            raise InputError(f"annealing: 0 < cold <= hot, got cold {self.cold} and hot {self.hot}")
        if not 0.0 <= self.onward < 1.0:
            raise InputError(f"annealing: onward lies in [0, 1), got {self.onward}")


class Annealing(PointSearcher):
    """A walk over neighbours: to a better one always, to a worse one the more likely the hotter it is.

    The schedule stretches to the search's evaluations. Asked ahead of results, it proposes neighbours of where it
    stands; each is accepted or not when it is told, against where the walk stands by then.

    Args:
        problem: what is asked.
        options: of the algorithm.
    """

    def __init__(self, problem: PointProblem, options: AnnealingOptions = AnnealingOptions()) -> None:
        super().__init__(problem)
        self.options = options
        self._warmup = max(2, round(options.warmup * problem.evaluations))
        self._standing: Result | None = None

    def propose(self) -> Point:
        """A random point at first, then a neighbour of where the walk stands."""
        if self._standing is None or len(self.results) + len(self._pending) < self._warmup:
            return balance(self.problem, random_point(self.space, self.generator), self.generator)
        return exchange(self.problem, self._standing.point, self.generator, self.options.onward)

    def learn(self, result: Result) -> None:
        """Go there, or stay."""
        lottery = self.generator.random()
        standing = self._standing
        worse = 0.0 if standing is None else standing.accuracy - result.accuracy
        if worse <= 0.0 or (len(self.results) > self._warmup and lottery < exp(-worse / self._temperature())):
            self._standing = result

    def state(self) -> State:
        """The walk stands at one of the results."""
        arrays, values = super().state()
        standing = next((number for number, each in enumerate(self.results) if each is self._standing), None)
        return arrays, values | {"standing": standing}

    def restore(self, arrays: Mapping[str, np.ndarray[Any, Any]], values: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        super().restore(arrays, values)
        self._standing = None if values["standing"] is None else self.results[values["standing"]]

    def _temperature(self) -> float:
        """In accuracy; above 0."""
        first = [each.accuracy for each in self.results[: self._warmup] if not each.failed]
        spread = float(np.std(first)) if first else 0.0
        done = (len(self.results) - self._warmup) / max(1, self.problem.evaluations - self._warmup)
        cooled: float = (self.options.cold / self.options.hot) ** min(1.0, done)
        return max(spread, 1e-6) * self.options.hot * cooled
