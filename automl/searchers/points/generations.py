"""OFA's evolutionary search: on predicted accuracies, which cost next to nothing, within the budget.

Cai et al., "Once-for-All: Train One Network and Specialize it for Efficient Deployment", ICLR 2020: a generation is the
best of the last one, their mutations and their crossovers, half each; what breaks the budget is thrown away and drawn
again. Under a tight budget nearly all mutations do, and none trades one layer for another: balanced ones (see `moves`)
find the optimum of an additive accuracy in 23 of 24 searches; the published ones miss it often where a budget is tight.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from automl.searchers.points.base import PointProblem
from automl.searchers.points.moves import balance_all
from search_spaces.errors import InputError
from search_spaces.space import SearchSpace

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Predict = Callable[[IntArray], FloatArray]

DRAWS = 8
"""Rounds in which children that break the budget are drawn again."""


@dataclass(frozen=True)
class Generations:
    """How it evolves; population, parents, mutation and iterations are the paper's.

    Attributes:
        population: points of a generation.
        parents: share of them that live on, and have children.
        mutation: probability that a mutation draws a decision anew.
        iterations: generations at most.
        patience: of them, in which the parents stay the same, before it ends; 0 never ends it.
        balanced: whether a mutation's other decisions give what it takes and take what it frees; False is the paper's.
    """

    population: int = 100
    parents: float = 0.25
    mutation: float = 0.1
    iterations: int = 500
    patience: int = 20
    balanced: bool = True

    def __post_init__(self) -> None:
        for name, least in (("population", 4), ("iterations", 1), ("patience", 0)):
            if getattr(self, name) < least:
                raise InputError(f"once_for_all: {name} is at least {least}, got {getattr(self, name)}")
        for name in ("parents", "mutation"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise InputError(f"once_for_all: {name} is a share in (0, 1), got {getattr(self, name)}")


def evolve(
    problem: PointProblem, predict: Predict, start: IntArray, how: Generations, generator: np.random.Generator
) -> IntArray:
    """All points that came up and kept the budget, distinct, the best first.

    Args:
        problem: with the space, the budget and what points cost; tens of thousands are priced.
        predict: accuracies [P] of points [P, D].
        start: points that the first generation begins with, [S, D], where they keep the budget.
        how: it evolves.
        generator: of everything random.

    Returns:
        Canonical points within the budget, [P, D].
    """
    counts = problem.space.counts
    living = max(2, round(how.parents * how.population))
    half = (how.population - living) // 2

    def mutated(parents: IntArray) -> IntArray:
        points = parents[generator.integers(0, len(parents), half)]
        anew = generator.random(points.shape) < how.mutation
        changed: IntArray = np.where(anew, generator.integers(0, counts, points.shape), points)
        return _balanced(problem, changed, anew, generator) if how.balanced else changed

    def crossed(parents: IntArray) -> IntArray:
        mothers, fathers = parents[generator.integers(0, len(parents), (2, half))]
        found: IntArray = np.where(generator.random(mothers.shape) < 0.5, fathers, mothers)
        return found

    def fittest(pool: IntArray) -> IntArray:
        distinct = np.unique(canonical_all(problem.space, pool), axis=0)
        best: IntArray = distinct[np.argsort(-predict(distinct), kind="stable")[:living]]
        return best

    # Of points drawn from the whole space a tight budget may leave none.
    drawn = generator.integers(0, counts, (how.population, len(counts)))
    first = _balanced(problem, drawn, np.zeros(drawn.shape, dtype=np.bool_), generator)
    parents = fittest(np.concatenate([start[problem.kept(start)], first]))
    same, seen = 0, [parents]
    for _ in range(how.iterations):
        children = [_kept(problem, partial(operator, parents), half) for operator in (mutated, crossed)]
        chosen = fittest(np.concatenate([parents, *children]))
        same = same + 1 if np.array_equal(chosen, parents) else 0
        parents = chosen
        seen += children
        if same == how.patience > 0:
            break
    distinct = np.unique(canonical_all(problem.space, np.concatenate(seen)), axis=0)
    ranked: IntArray = distinct[np.argsort(-predict(distinct), kind="stable")]
    return ranked


def canonical_all(space: SearchSpace, points: IntArray) -> IntArray:
    """`SearchSpace.canonical` of points [P, D]."""
    found: IntArray = np.where(space.depths.active(points), points, space.greatest) if space.depths else points
    return found


def _balanced(
    problem: PointProblem, points: IntArray, moved: npt.NDArray[np.bool_], generator: np.random.Generator
) -> IntArray:
    """See `balance_all`; no choice is known to lose more than another."""
    return balance_all(problem, points, generator, moved, [np.zeros(count) for count in problem.space.counts])


def _kept(problem: PointProblem, draw: Callable[[], IntArray], number: int) -> IntArray:
    """That many of the points that `draw` makes and the budget allows; fewer where it hardly allows any."""
    found = [np.empty((0, len(problem.space.counts)), dtype=np.int64)]
    for _ in range(DRAWS):
        points = draw()
        found.append(points[problem.kept(points)])
        if sum(map(len, found)) >= number:
            break
    return np.concatenate(found)[:number]
