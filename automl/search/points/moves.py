"""Steps along the budget: what one decision frees goes to others, what it takes comes from others.

A single step up from a point that spends its budget is undone by repair, a single step down wastes what it frees; so
searchers whose moves are single steps balance them. A point that leaves no step up within the budget is best wherever
accuracy does not fall with a larger choice; where it does, steps down are kept all the same, as those of the decisions
that were moved on purpose.
"""

import numpy as np
import numpy.typing as npt

from automl.search.points.base import PointProblem
from search_spaces.space import Point


def balance(
    problem: PointProblem, point: Point, generator: np.random.Generator, moved: npt.NDArray[np.bool_] | None = None
) -> Point:
    """The point after random steps down until it keeps the budget, then random steps up for as long as it does.

    Args:
        problem: with the space and the budget.
        point: of the space.
        generator: draws the steps.
        moved: decisions that are to stay as they are where that is possible, [D]; none by default.

    Returns:
        A point within the budget, where no single step up of another decision would be.
    """
    others = np.ones(len(point), dtype=np.bool_) if moved is None else ~moved
    current = point.copy()
    while not problem.kept(current[None])[0]:
        free = np.flatnonzero((current > 0) & others)
        if not len(free):
            return problem.space.repair(current, problem.constraints, problem.prices)
        current[generator.choice(free)] -= 1
    top = problem.space.counts - 1
    upward = np.flatnonzero((current < top) & others)
    if len(upward):
        tries = np.repeat(current[None], len(upward), axis=0)
        tries[np.arange(len(upward)), upward] += 1
        upward = upward[problem.kept(tries)]
    while len(upward):  # what is too dear now stays so; one at a time, because a measured price takes its time
        place = generator.choice(upward)
        current[place] += 1
        kept = problem.kept(current[None])[0]
        if not kept:
            current[place] -= 1
        if not kept or current[place] == top[place]:
            upward = upward[upward != place]
    return current


def exchange(problem: PointProblem, point: Point, generator: np.random.Generator, onward: float = 0.25) -> Point:
    """A point near by: random decisions one choice up or down, the others balanced.

    Args:
        problem: with the space and the budget.
        point: of the space.
        generator: draws the steps.
        onward: probability that one more step follows, so that no neighbourhood is ever exhausted.
    """
    counts = problem.space.counts
    free = np.flatnonzero(counts > 1)
    current = point.copy()
    while True:
        place = generator.choice(free)
        up = current[place] == 0 or (current[place] < counts[place] - 1 and generator.random() < 0.5)
        current[place] += 1 if up else -1
        if generator.random() >= onward:
            return balance(problem, current, generator, current != point)
