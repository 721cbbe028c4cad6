"""Gradual sparsification: zeros grow in number while a network is trained, so that it can make up for each of them.

Zhu & Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression", ICLR 2018 workshop
(arXiv 1710.01878, 2017).
"""

from dataclasses import dataclass

from torch import Tensor

from automl.compression.sparsity.criteria import criterion
from automl.compression.sparsity.masks import mask
from search_spaces.errors import InputError
from search_spaces.sparsity import Sparsity, window_of


def cubic_share(start: float, final: float, step: int, steps: int) -> float:
    """The share of zeros after so many steps of the schedule: s_t = s_f + (s_i - s_f) (1 - t / n)^3.

    Equation 1 of Zhu & Gupta: fast at first, when there is much to choose from, and slower and slower towards the end.
    Before the first step it is the start, from the last on the final share; with no steps it is final at once.

    >>> [cubic_share(0.0, 0.8, step, 4) for step in (0, 2, 4, 9)]
    [0.0, 0.7000000000000001, 0.8, 0.8]

    Args:
        start: s_i, in [0, 1).
        final: s_f, in [start, 1).
        step: t, steps taken.
        steps: n.

    Raises:
        InputError: a share or a number of steps out of range.
    """
    if not 0.0 <= start <= final < 1.0:
        raise InputError(f"gradual sparsity rises from a share to another in [0, 1), got {start} to {final}")
    if steps < 0:
        raise InputError(f"a schedule has at least 0 steps, got {steps}")
    if step >= steps:
        return final
    return final + (start - final) * (1.0 - max(step, 0) / steps) ** 3


@dataclass(frozen=True, slots=True)
class GradualSparsity:
    """When zeros are chosen while a network is trained, and which; see `automl.compression.fine_tune`.

    A weight that is zero stays so. "N:M" goes by way of its M-1:M, M-2:M and so on, each when the schedule is nearer to
    it than to the one before.

    Attributes:
        steps: of the training, until a layer is as sparse as its policy says; with 0 it is so from the start.
        every: steps between two choices, Delta t in the paper (100 to 1000 there, of far longer trainings).
        start: share of zeros before the first step.
        criterion: one of `automl.compression.sparsity.CRITERIA`.

    Raises:
        InputError: an unknown criterion, or a number out of range.
    """

    steps: int = 0
    every: int = 10
    start: float = 0.0
    criterion: str = "magnitude"

    def __post_init__(self) -> None:
        criterion(self.criterion)
        cubic_share(self.start, self.start, 0, self.steps)
        if self.every < 1:
            raise InputError(f"masks are chosen every so many steps, at least 1, got {self.every}")

    def due(self, step: int) -> bool:
        """Whether zeros are chosen after so many steps."""
        return step == self.steps or (step < self.steps and step % self.every == 0)

    def grow(self, before: Tensor, target: Sparsity, step: int, weight: Tensor, gradient: Tensor | None) -> Tensor:
        """Which weights stay after so many steps, bool like the weight.

        Args:
            before: which have stayed so far; none of the others comes back.
            target: the sparsity at the end.
            step: how many were taken.
            weight: as it stands now, [out, in / groups, *kernel].
            gradient: of the loss with respect to it, where the criterion needs it.

        Raises:
            InputError: the target does not fit the weight, is below the start, or the criterion lacks what it needs.
        """
        now = _towards(target, cubic_share(self.start, target.share, step, self.steps))
        if now.nonzeros(weight.shape) >= int(before.sum()):
            return before
        return mask(criterion(self.criterion).score(weight, gradient), now, within=before)


def _towards(target: Sparsity, share: float) -> Sparsity:
    """The target's pattern at a share that is not above the target's."""
    window = window_of(target.pattern)
    if window is None:
        return Sparsity(target.pattern, share)
    stay = max(window[0], window[1] - int(share * window[1] + 0.5))
    return Sparsity(f"{stay}:{window[1]}", 1 - stay / window[1])
