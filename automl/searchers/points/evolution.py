"""Regularised evolution (Real et al., "Regularized evolution for image classifier architecture search", AAAI 2019).

A population in which the oldest dies, not the worst: a point that was lucky once does not stay for ever, it has to be
found again by its children. A mutation moves a random decision by one choice and balances the others, see `moves`.
"""

from dataclasses import dataclass

from automl.searchers.points.base import PointProblem, PointSearcher
from automl.searchers.points.moves import balance, exchange
from automl.searchers.points.random import random_point
from search_spaces.errors import InputError
from search_spaces.space import Point


@dataclass(frozen=True)
class EvolutionOptions:
    """What can be set; the defaults suit 100 to 400 evaluations (the paper's 100 and 25 suit 20,000).

    Attributes:
        population: how many of the latest results are alive; as many random points come first.
        sample: how many of them, drawn with replacement, compete to be the parent.
        onward: probability that a mutation moves one more decision.
    """

    population: int = 20
    sample: int = 10
    onward: float = 0.25

    def __post_init__(self) -> None:
        for name in ("population", "sample"):
            if getattr(self, name) < 1:
                raise InputError(f"evolution: {name} is at least 1, got {getattr(self, name)}")
        if not 0.0 <= self.onward < 1.0:
            raise InputError(f"evolution: onward lies in [0, 1), got {self.onward}")


class Evolution(PointSearcher):
    """The best of a random sample of the latest results has a child.

    The population is the tail of the results, so ageing needs no state. Asked ahead of results, parents are drawn from
    those that are told; before the first there are random points.

    Args:
        problem: what is asked.
        options: of the algorithm.
    """

    def __init__(self, problem: PointProblem, options: EvolutionOptions = EvolutionOptions()) -> None:
        super().__init__(problem)
        self.options = options

    def propose(self) -> Point:
        """A random point at first, then a mutated winner of a tournament."""
        options = self.options
        if not self.results or len(self.results) + len(self._pending) < options.population:
            return balance(self.problem, random_point(self.space, self.generator), self.generator)
        alive = self.results[-options.population :]
        drawn = self.generator.integers(0, len(alive), options.sample).tolist()
        parent = max((alive[number] for number in drawn), key=lambda result: result.accuracy)
        return exchange(self.problem, parent.point, self.generator, options.onward)
