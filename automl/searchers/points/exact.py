"""The exact solution of sensitivities, and the next best ones.

A loss for every choice of every decision, summed, is least at a point that integer programming finds, under any number
of budgets at once (HAWQ-V3: Yao et al., "HAWQ-V3: dyadic neural network quantization", ICML 2021, and many others, for
bits under one). How well the sum stands for the network is another matter, so the next best points are evaluated, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from automl.searchers.base import State
from automl.searchers.points.base import PointProblem, PointSearcher
from automl.searchers.points.program import Program
from automl.searchers.points.sensitivity import avoiding, measured_losses, probes
from search_spaces.errors import InputError
from search_spaces.policy import CompressionPolicy
from search_spaces.space import Point

FloatArray = npt.NDArray[np.float64]
HESSIAN = "hessian"


@dataclass(frozen=True)
class ExactOptions:
    """What can be set.

    Attributes:
        sensitivity: "loss" measures them, one decision at a time; "hessian" takes them from the curvature of the loss
            (HAWQ-V2), which knows what weights lose and asks for no evaluation.
        fidelity: share of the images on which sensitivities are measured.
        solutions: points that are evaluated once all sensitivities are known, the best of the additive model first.
    """

    sensitivity: str = "loss"
    fidelity: float = 0.25
    solutions: int = 8

    def __post_init__(self) -> None:
        if self.sensitivity not in ("loss", HESSIAN):
            raise InputError(f"exact: sensitivity is 'loss' or {HESSIAN!r}, got {self.sensitivity!r}")
        if not 0.0 < self.fidelity <= 1.0:
            raise InputError(f"exact: fidelity is a share of the images in (0, 1], got {self.fidelity}")
        if self.solutions < 1:
            raise InputError(f"exact: solutions is at least 1, got {self.solutions}")


class Exact(PointSearcher):
    """Sensitivities, then the points whose losses add up to least.

    Sensitivities are measured one decision at a time, so most of them are above the budget: `keeps_budget` is False.
    Asked ahead of the last of them, it proposes the solution of those that it knows.

    Args:
        problem: what is asked.
        options: of the algorithm.
        losses: of every choice of every decision, where they are known already; nothing is measured then.

    Raises:
        InputError: a budget that cannot be kept, or losses of another space.
    """

    keeps_budget = False

    def __init__(
        self,
        problem: PointProblem,
        options: ExactOptions = ExactOptions(),
        losses: Sequence[FloatArray] | None = None,
    ) -> None:
        super().__init__(problem)
        if options.sensitivity == HESSIAN:
            from automl.compression.curvature import check_curved  # torch, only where it is needed

            check_curved(self.space)
        if losses is not None and [len(loss) for loss in losses] != self.space.counts.tolist():
            raise InputError("exact: there is a loss for every choice of every decision, these are of another space")
        self.options = options
        self._given = losses
        self._centre: Point | None = None  # of the program
        affordable = int((problem.evaluations - 1) / options.fidelity)
        self._probes = probes(self.space, affordable if options.sensitivity == "loss" and losses is None else 0)
        self._solved = 0  # proposals made with all sensitivities known

    def propose(self) -> Point:
        """A sensitivity, or the best point that was not proposed yet."""
        if self.options.sensitivity == HESSIAN and self._given is None:
            raise RuntimeError("the losses of a search by curvature are computed beforehand")
        made = len(self.results) + len(self._pending)
        if made < len(self._probes):
            self.share = self.options.fidelity
            probe: Point = self._probes[made]
            return probe
        self.share = 1.0
        known = len(self.results) >= len(self._probes)
        solutions = [*(each.point for each in self.results), *self._pending][len(self._probes) :]
        found = self._program.best(avoiding(self._losses(), self._causes), solutions)
        self._centre = self._program.centre
        self._solved = self.options.solutions if found is None else self._solved + known
        self.finished = self._solved >= self.options.solutions
        return solutions[0] if found is None else found

    def ask(self) -> CompressionPolicy:
        """The next proposal."""
        point: Point = self.propose()
        self._pending.append(point)
        return self.space.decode(point)

    def state(self) -> State:
        """The number of solutions, beside what every searcher has."""
        arrays, values = super().state()
        centre = None if self._centre is None else self._centre.tolist()
        return arrays, values | {"solved": self._solved, "centre": centre}

    def restore(self, arrays: Mapping[str, np.ndarray[Any, Any]], values: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        super().restore(arrays, values)
        self._solved = values["solved"]
        self._centre = None if values["centre"] is None else np.array(values["centre"], dtype=np.int64)
        self.finished = self._solved >= self.options.solutions

    @cached_property
    def _program(self) -> Program:
        """Made when it is needed, because it may price many points."""
        return Program(self.problem, self._centre)

    def _losses(self) -> Sequence[FloatArray]:
        if self._given is not None:
            return self._given
        return measured_losses(self.space, self.results[: len(self._probes)])
