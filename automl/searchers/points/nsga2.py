"""NSGA-II (Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II", 2002): accuracy against cost."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from automl.searchers.points.base import PointProblem, PointSearcher, Result
from automl.searchers.points.moves import balance
from automl.searchers.points.random import random_point
from search_spaces.errors import InputError
from search_spaces.space import Point

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Nsga2Options:
    """What can be set; the defaults suit 100 to 400 evaluations.

    Attributes:
        population: points that survive a generation; a generation has as many children.
        crossover: probability that a child has two parents.
        changes: decisions that a mutation takes anew on average; at least one is.
        reach: probability that a child is balanced up to the budget, and not just to what its first parent costs: a
            front is wanted, and its best end first of all.
    """

    population: int = 20
    crossover: float = 0.9
    changes: float = 1.0
    reach: float = 0.5

    def __post_init__(self) -> None:
        if self.population < 2:
            raise InputError(f"nsga2: population is at least 2, got {self.population}")
        if not 0.0 <= self.crossover <= 1.0:
            raise InputError(f"nsga2: crossover lies in [0, 1], got {self.crossover}")
        if not 0.0 <= self.reach <= 1.0:
            raise InputError(f"nsga2: reach lies in [0, 1], got {self.reach}")
        if self.changes < 0.0:
            raise InputError(f"nsga2: changes is not negative, got {self.changes}")


def front_numbers(objectives: npt.ArrayLike) -> IntArray:
    """Non-dominated sorting: 0 for what nothing dominates, 1 for what nothing else does once those are gone, ...

    Args:
        objectives: [N, M], all minimised.

    Returns:
        int64 [N].
    """
    values = np.asarray(objectives, dtype=np.float64)
    no_worse = (values[:, None] <= values[None]).all(axis=2)
    dominates = no_worse & ~no_worse.T
    numbers = np.full(len(values), -1, dtype=np.int64)
    number = 0
    while (left := numbers < 0).any():
        numbers[left & ~(dominates & left[:, None]).any(axis=0)] = number
        number += 1
    return numbers


def crowding_distances(objectives: npt.ArrayLike) -> FloatArray:
    """How far apart the neighbours of each point of one front are, summed over the objectives; of its ends infinite.

    Args:
        objectives: [N, M].

    Returns:
        [N].
    """
    values = np.asarray(objectives, dtype=np.float64)
    distances = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        distances[order[[0, -1]]] = np.inf
        span = column[order[-1]] - column[order[0]]
        if span > 0.0:
            distances[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distances


class Nsga2(PointSearcher):
    """Children of those that survived, by tournament, crossover and mutation; their best front is the search's.

    Costs are the problem's objectives, by default that of its first constraint. All points keep all constraints:
    children are balanced (see `moves`), so that a generation exchanges what it has instead of drifting to the cheap
    end. A generation ends when all its children are told; asked ahead of that, there are more children of the same
    parents, and what is told counts for the generation that it is told in.

    Args:
        problem: what is asked.
        options: of the algorithm.
    """

    def __init__(self, problem: PointProblem, options: Nsga2Options = Nsga2Options()) -> None:
        super().__init__(problem)
        self.options = options
        self._forget()

    def propose(self) -> Point:
        """A random point at first, then a child."""
        if not self._parents:
            return random_point(self.space, self.generator)
        options, generator = self.options, self.generator
        parent = self._winner()
        child = parent
        if generator.random() < options.crossover:
            child = self.space.crossover(parent, self._winner(), generator)
        mutant = self.space.mutate(child, generator, options.changes / len(child))
        problem = self.problem if generator.random() < options.reach else self._as_dear_as(parent)
        return balance(problem, mutant, generator, mutant != child)

    def learn(self, result: Result) -> None:
        """After the last of a generation those are chosen that survive."""
        self._children.append(result)
        if len(self._children) == self.options.population:
            self._survive([*self._parents, *self._children])

    def restore(self, arrays: Mapping[str, np.ndarray[Any, Any]], values: Mapping[str, Any]) -> None:
        """Take over what `state` gave; who survived follows from the results."""
        super().restore(arrays, values)
        self._forget()
        for result in self.results:
            self.learn(result)

    def _forget(self) -> None:
        self._parents: list[Result] = []  # the best first
        self._children: list[Result] = []

    def _survive(self, everyone: list[Result]) -> None:
        """The first fronts, of the last that fits the least crowded."""
        costs = self.problem.prices(np.array([each.point for each in everyone]))
        minimised = [costs[metric] for metric in self.problem.minimised]
        objectives = np.stack([-np.array([each.accuracy for each in everyone]), *minimised], axis=1)
        fronts = front_numbers(objectives)
        distances = np.empty(len(everyone))
        for number in range(int(fronts.max()) + 1):
            distances[fronts == number] = crowding_distances(objectives[fronts == number])
        order = np.lexsort((-distances, fronts))
        self._parents = [everyone[place] for place in order[: self.options.population].tolist()]
        self._children = []

    def _as_dear_as(self, point: Point) -> PointProblem:
        """The problem with a budget that a point just keeps, of the metric that costs are of."""
        first, *others = self.problem.constraints
        cost = float(self.problem.prices(point[None])[first.metric][0])
        return replace(self.problem, constraints=(replace(first, limit=cost), *others))

    def _winner(self) -> Point:
        """The better of two: parents stand in the order of front and crowding."""
        return self._parents[int(self.generator.integers(len(self._parents), size=2).min())].point
