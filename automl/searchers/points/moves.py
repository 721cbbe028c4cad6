"""Steps along the budget: what one decision frees goes to others, what it takes comes from others.

A single step up from a point that spends its budget is undone by repair, a single step down wastes what it frees; so
searchers whose moves are single steps balance them. A point that leaves no step up within the budget is best wherever
accuracy does not fall with a larger choice; where it does, steps down are kept all the same, as those of the decisions
that were moved on purpose.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from automl.searchers.points.base import PointProblem
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


def balance_all(
    problem: PointProblem,
    points: npt.NDArray[np.int64],
    generator: np.random.Generator,
    moved: npt.NDArray[np.bool_],
    losses: Sequence[npt.NDArray[np.float64]],
) -> npt.NDArray[np.int64]:
    """`balance` of many points at once, each step the better of two by what it loses.

    Args:
        problem: with the space and the budget.
        points: of the space, [P, D].
        generator: draws the steps.
        moved: decisions that are to stay as they are where that is possible, [P, D].
        losses: of every choice of every decision; they only guide.

    Returns:
        Points within the budget, [P, D].
    """
    current = points.copy()
    starts = np.cumsum([0, *(len(loss) for loss in losses)])[:-1]
    table = np.concatenate(losses)

    def drawn(rows: npt.NDArray[np.int64], free: npt.NDArray[np.bool_], step: int) -> npt.NDArray[np.int64]:
        """One free decision for each row."""
        both = np.where(free, generator.random((2, *free.shape)), -1.0).argmax(axis=2)
        here = current[rows, both]
        lost = table[starts[both] + here + step] - table[starts[both] + here]
        found: npt.NDArray[np.int64] = np.where(lost[0] <= lost[1], both[0], both[1])
        return found

    rows = np.flatnonzero(~problem.kept(current))
    while len(rows):
        free = (current[rows] > 0) & ~moved[rows]
        stuck = ~free.any(axis=1)
        for row in rows[stuck].tolist():
            current[row] = problem.space.repair(current[row], problem.constraints, problem.prices)
        rows, free = rows[~stuck], free[~stuck]
        current[rows, drawn(rows, free, -1)] -= 1
        rows = rows[~problem.kept(current[rows])]
    free = (current < problem.space.counts - 1) & ~moved
    places = np.argwhere(free)
    tries = current[places[:, 0]]
    tries[np.arange(len(places)), places[:, 1]] += 1
    free[tuple(places.T)] = problem.kept(tries)
    rows = np.flatnonzero(free.any(axis=1))
    while len(rows):
        chosen = drawn(rows, free[rows], 1)
        current[rows, chosen] += 1
        kept = problem.kept(current[rows])
        current[rows[~kept], chosen[~kept]] -= 1
        free[rows, chosen] = kept & (current[rows, chosen] < problem.space.counts[chosen] - 1)
        rows = rows[free[rows].any(axis=1)]
    return current
