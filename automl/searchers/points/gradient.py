"""Points drawn from distributions over the choices of every decision that were trained by gradient beforehand.

The training is `automl.supernet.architecture`'s: DARTS (Liu et al., ICLR 2019) and ProxylessNAS (Cai et al., ICLR 2019)
over the choices of a search space. What is trained on is a mixture of sub-networks and an expected cost, so that the
most probable point need neither keep the budget nor be the best: the most probable one that keeps it comes first, then
draws from the distributions and changes of the best result, evaluated as any proposal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from automl.searchers.base import State
from automl.searchers.points.base import PointProblem, PointSearcher
from automl.searchers.points.program import Program
from automl.searchers.points.sensitivity import avoiding
from backends.layer_prices import FloatArray
from search_spaces.errors import InputError
from search_spaces.space import ELASTIC, Point, SearchSpace

RELAXATIONS = ("gumbel", "softmax")
TABLES = 2**20
"""Entries of the tables of costs up to which the most probable point within the budget is solved for."""
TEMPERATURES = (1.0, 0.25)
"""Of the first and of the last draw of a search."""
CHANGED = 3.0
"""Decisions of the best result that are drawn anew, on average; the others should stay."""
STAYS = 8.0
"""Nats that the choices of the others are worth."""


@dataclass(frozen=True)
class GradientOptions:
    """What can be set.

    Attributes:
        steps: of the optimiser, Adam, on the logits of all choices; 0 leaves the distributions uniform.
        batch: training images a step.
        lr: learning rate.
        tau: temperature at the first step, which falls geometrically to `tau_end` at the last: of a mixture nearly
            uniform to a single choice.
        tau_end: see there.
        cost_weight: of what the logarithm of the expected cost is above that of its budget, beside the loss in nats.
        relaxation: "gumbel" draws each step's mixture (Jang et al., ICLR 2017), "softmax" takes the probabilities
            themselves, as DARTS does.
    """

    steps: int = 200
    batch: int = 64
    lr: float = 0.1
    tau: float = 5.0
    tau_end: float = 0.1
    cost_weight: float = 2.0
    relaxation: str = "gumbel"

    def __post_init__(self) -> None:
        rules = {
            "steps is at least 0": self.steps >= 0,
            "batch is at least 2, for batch norms": self.batch >= 2,
            "lr is positive": self.lr > 0.0,
            "tau is at least tau_end": self.tau >= self.tau_end,
            "tau_end is positive": self.tau_end > 0.0,
            "cost_weight is not negative": self.cost_weight >= 0.0,
            f"relaxation is one of {', '.join(RELAXATIONS)}": self.relaxation in RELAXATIONS,
        }
        for rule, holds in rules.items():
            if not holds:
                raise InputError(f"gradient: {rule}, got {getattr(self, rule.split()[0])!r}")


def check_elastic(space: SearchSpace) -> None:
    """InputError where something is decided that has no mixture here."""
    for decision in space.decisions:
        if decision.dimension not in ELASTIC:
            raise InputError(
                f"a search by gradient decides on {', '.join(ELASTIC)}, not on {decision.name!r}; leave "
                f"{decision.dimension} out of the space, or search by another algorithm"
            )


class Gradient(PointSearcher):
    """The most probable point that keeps the budgets, then draws, more and more of them changes of the best.

    Args:
        problem: what is asked.
        options: of the training.
        logits: of every choice of every decision; without, there is nothing to propose yet.

    Raises:
        InputError: a budget that cannot be kept, a decision that has no mixture, or logits of another space.
    """

    def __init__(
        self,
        problem: PointProblem,
        options: GradientOptions = GradientOptions(),
        logits: Sequence[FloatArray] | None = None,
    ) -> None:
        super().__init__(problem)
        check_elastic(self.space)
        if logits is not None and [len(each) for each in logits] != self.space.counts.tolist():
            raise InputError("gradient: every choice of every decision has a logit, these are of another space")
        self.options = options
        self._logits = logits
        self._centre: Point | None = None  # of the program

    def propose(self) -> Point:
        """The most probable point, a draw, or a change of the best result."""
        if self._logits is None:
            raise RuntimeError("the logits of a search by gradient are trained beforehand")
        made = len(self.results) + len(self._pending)
        if not made:
            return self._best(self._logits)
        done = made / self.problem.evaluations
        first, last = TEMPERATURES
        temperature = first * (last / first) ** done
        scores = [each / temperature + self.generator.gumbel(size=len(each)) for each in self._logits]
        best = self.best()
        if best and self.generator.random() < done:
            stays = self.generator.random(len(scores)) >= CHANGED / len(scores)
            for number in np.flatnonzero(stays).tolist():
                scores[number][best[0].point[number]] += STAYS
        return self._best(scores)

    def state(self) -> State:
        """Where secants are drawn around, beside what every searcher has."""
        arrays, values = super().state()
        return arrays, values | {"centre": None if self._centre is None else self._centre.tolist()}

    def restore(self, arrays: Mapping[str, np.ndarray[Any, Any]], values: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        super().restore(arrays, values)
        self._centre = None if values["centre"] is None else np.array(values["centre"], dtype=np.int64)

    @cached_property
    def _program(self) -> Program:
        """Made when it is needed, because it may price many points."""
        return Program(self.problem, self._centre, TABLES)

    def _best(self, scores: Sequence[FloatArray]) -> Point:
        """The new point of the largest sum of scores, within the budgets where that can be solved for."""
        made = [*(each.point for each in self.results), *self._pending]
        found = None
        if self._program.solvable:
            losses = [each.max() - each for each in scores]
            found = self._program.best(avoiding(losses, self._causes), made)
            self._centre = self._program.centre
        return np.array([int(each.argmax()) for each in scores], dtype=np.int64) if found is None else found
