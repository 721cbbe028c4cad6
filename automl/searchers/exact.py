"""The best point of an additive model under any number of budgets, exactly, by integer programming.

HAWQ-V3 (Yao et al., ICML 2021) and others choose bits so: a loss for every choice of every decision, summed, and costs
summed over layers. Costs here may depend on several decisions at once, as a convolution's on the channels that it reads
and gives and on its bits: a *factor* has a cost for every combination of its decisions' choices, and the program a
variable for each combination, tied to those of the decisions (the local polytope: Wainwright and Jordan, "Graphical
models, exponential families, and variational inference", 2008).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from backends.point_prices import Factor
from search_spaces.errors import InputError, TrimtabError

FloatArray = npt.NDArray[np.float64]
GAP = 1e-9
"""Share by which what is returned may be worse than the optimum; rounding makes as much."""


def solve(
    losses: Sequence[npt.ArrayLike],
    factors: Sequence[Factor],
    limits: npt.ArrayLike,
    *,
    forbidden: Sequence[npt.ArrayLike] = (),
    gap: float = GAP,
    time_limit_s: float = 60.0,
) -> npt.NDArray[np.int64] | None:
    """The choices of least summed loss whose summed costs keep all limits.

    Args:
        losses: of every decision, one for each of its choices.
        factors: parts of the cost; one of no decision is a constant.
        limits: of each budget, [budgets].
        forbidden: points that are not to be returned, each [decisions].
        gap: share by which the loss may be above the least; what is coarser is found sooner.
        time_limit_s: after which the best point found so far is taken.

    Returns:
        The number of a choice for each decision, int64 [decisions]; None where no point keeps the limits.

    Raises:
        InputError: a loss, cost or limit is no number.
        TrimtabError: no point was found in the time.
    """
    program = _Program([np.asarray(loss, dtype=np.float64) for loss in losses], np.asarray(limits, dtype=np.float64))
    for factor in factors:
        program.add(factor)
    for point in forbidden:
        program.forbid(np.asarray(point, dtype=np.int64))
    return program.solve(gap, time_limit_s)


class _Program:
    """A mixed-integer linear program: a binary variable a choice, a continuous one a combination."""

    def __init__(self, losses: list[FloatArray], limits: FloatArray) -> None:
        if not all(np.isfinite(loss).all() for loss in losses) or np.isnan(limits).any():
            raise InputError("losses and limits of the exact solver are numbers; one is not")
        self._sizes = [len(loss) for loss in losses]
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)]).astype(np.int64)
        self._objective = [*losses]
        self._binary = int(self._starts[-1])
        self._variables = self._binary
        self._limits = limits
        self._rows: list[tuple[FloatArray, npt.NDArray[np.int64], float, float]] = []  # values, columns, low, high
        self._budgets: list[list[tuple[FloatArray, npt.NDArray[np.int64]]]] = [[] for _ in limits]
        for start, size in zip(self._starts, self._sizes, strict=False):
            self._rows.append((np.ones(size), start + np.arange(size), 1.0, 1.0))

    def add(self, factor: Factor) -> None:
        if not factor.decisions:
            self._limits = self._limits - factor.costs
            return
        shape = tuple(self._sizes[decision] for decision in factor.decisions)
        if factor.costs.shape != (len(self._limits), *shape) or not np.isfinite(factor.costs).all():
            raise InputError(f"a factor's costs are finite, [{len(self._limits)}, {shape}], got {factor.costs.shape}")
        if len(shape) == 1:
            columns = self._starts[factor.decisions[0]] + np.arange(shape[0])
        else:
            columns = self._variables + np.arange(int(np.prod(shape)))
            self._variables += len(columns)
            self._objective.append(np.zeros(len(columns)))
            numbers = columns.reshape(shape)
            for axis, decision in enumerate(factor.decisions):
                for choice in range(shape[axis]):
                    combinations = np.take(numbers, choice, axis=axis).ravel()
                    values = np.append(np.ones(len(combinations)), -1.0)
                    self._rows.append((values, np.append(combinations, self._starts[decision] + choice), 0.0, 0.0))
        for budget, costs in zip(self._budgets, factor.costs, strict=True):
            budget.append((costs.ravel(), columns))

    def forbid(self, point: npt.NDArray[np.int64]) -> None:
        columns = self._starts[:-1] + point
        self._rows.append((np.ones(len(columns)), columns, -np.inf, len(columns) - 1.0))

    def solve(self, gap: float, time_limit_s: float) -> npt.NDArray[np.int64] | None:
        rows = list(self._rows)
        for parts, limit in zip(self._budgets, self._limits.tolist(), strict=True):
            if parts and np.isfinite(limit):
                scale = abs(limit) or 1.0  # costs of bytes and of seconds side by side
                costs, places = (np.concatenate(side) for side in zip(*parts, strict=True))
                rows.append((costs / scale, places, -np.inf, limit / scale))
            elif not parts and limit < 0:
                return None
        values, columns, low, high = (list(side) for side in zip(*rows, strict=True))
        numbers = np.repeat(np.arange(len(rows)), [len(row) for row in columns])
        matrix = coo_array(
            (np.concatenate(values), (numbers, np.concatenate(columns))), shape=(len(rows), self._variables)
        )
        objective = np.concatenate(self._objective)
        spread = float(np.abs(objective).max(initial=0.0)) or 1.0
        found = milp(
            objective / spread,
            constraints=LinearConstraint(matrix.tocsr(), np.array(low), np.array(high)),
            integrality=(np.arange(self._variables) < self._binary).astype(int),
            bounds=Bounds(0.0, 1.0),
            options={"time_limit": time_limit_s, "mip_rel_gap": gap},
        )
        if found.x is None:
            if found.status == 2:  # infeasible
                return None
            raise TrimtabError(f"the exact solver found nothing in {time_limit_s:g} s: {found.message}")
        chosen = [
            int(np.argmax(found.x[start : start + size]))
            for start, size in zip(self._starts[:-1].tolist(), self._sizes, strict=True)
        ]
        return np.array(chosen, dtype=np.int64)
