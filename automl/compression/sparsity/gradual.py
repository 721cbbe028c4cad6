"""Gradual sparsification: zeros grow in number while the network is trained, so that it can make up for each of them.

Zhu & Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression", ICLR 2018 workshop
(arXiv 1710.01878, 2017).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from automl.compression.sparsity.criteria import CRITERIA
from automl.compression.sparsity.masks import mask
from search_spaces.errors import InputError, did_you_mean
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


class GradualMasks:
    """The masks of layers whose sparsity grows while they are trained; with `steps=0` one-shot.

    Call `update` after every step of the optimiser. Every so many steps it chooses new zeros; it always writes the
    zeros into the weights, so that whatever gradient, momentum or weight decay did to them has no effect (in the paper
    such weights are not updated). A zero weight never comes back: it has the least magnitude there is, and it is left
    out where new ones are chosen. Once the target is reached the masks stay as they are.

    "N:M" goes by way of its M-1:M, M-2:M and so on, each when the schedule is nearer to it than to the one before.

    Args:
        weights: the parameters, by name of the layer; they are changed in place, and at once where something is zero
            from the start or there are no steps.
        targets: the sparsity that each of these layers ends with.
        steps: of the optimiser, until the targets are reached.
        every: steps between two choices of masks, Delta t in the paper (100 to 1000 there).
        start: share of zeros before the first step.
        masks: earlier ones by layer, whose zeros stay zeros; with `steps=0` those of the same sparsity are kept as they
            are. None where there are none.
        criterion: one of `CRITERIA`; where it needs gradients they are read off the parameters, so they must still be
            there when `update` is called.

    Raises:
        InputError: a target without weights, one that does not fit, or an argument out of range.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        targets: Mapping[str, Sparsity],
        *,
        steps: int,
        every: int = 100,
        start: float = 0.0,
        masks: Mapping[str, Tensor] | None = None,
        criterion: str = "magnitude",
    ) -> None:
        if criterion not in CRITERIA:
            raise InputError(f"there is no criterion {criterion!r}{did_you_mean(criterion, CRITERIA)}")
        if every < 1:
            raise InputError(f"masks are chosen every so many steps, at least 1, got {every}")
        for name, target in targets.items():
            if name not in weights:
                raise InputError(f"there are no weights of a layer {name!r}{did_you_mean(name, weights)}")
            cubic_share(start, target.share, 0, steps)
            try:
                target.atoms(weights[name].shape)
            except InputError as error:
                raise InputError(f"layer {name!r}: {error}") from None
        self._weights = {name: weights[name] for name in targets}
        self._targets = dict(targets)
        self._steps, self._every, self._start = steps, every, start
        self._score = CRITERIA[criterion].score
        self._chosen = -1  # the last step at which masks were chosen
        self.masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in self._weights.items()}
        self.masks |= {name: found.clone() for name, found in (masks or {}).items() if name in self.masks}
        """By layer, bool like its weight, True where one stays."""
        self.update(0)

    @property
    def done(self) -> bool:
        """Whether the targets are reached."""
        return self._chosen >= self._steps

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Choose masks where it is time to, and set the weights that they exclude to zero.

        Args:
            step: of the optimiser, how many it has taken; never fewer than at the last call.
        """
        if not self.done and (step >= self._steps or (step % self._every == 0 and step > self._chosen)):
            # all of them before any is changed: an error leaves masks and weights as they were
            self.masks = {name: self._choose(name, step) for name in self._targets}
            self._chosen = min(step, self._steps)
        for name, weight in self._weights.items():
            weight.masked_fill_(~self.masks[name], 0.0)

    def state_dict(self) -> dict[str, Tensor]:
        """Masks and progress, as tensors; with the weights all that `load_state_dict` needs to go on from here."""
        masks = {f"mask.{name}": found.clone() for name, found in self.masks.items()}
        return {"chosen": torch.tensor(self._chosen), **masks}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            InputError: it is of other layers.
        """
        names = {f"mask.{name}": found.shape for name, found in self.masks.items()}
        if {name: found.shape for name, found in state.items() if name != "chosen"} != names or "chosen" not in state:
            raise InputError("these masks are of other layers; go on with the targets that they were made for")
        self.masks = {name: state[f"mask.{name}"].to(found).clone() for name, found in self.masks.items()}
        self._chosen = int(state["chosen"])

    def _choose(self, name: str, step: int) -> Tensor:
        weight, before = self._weights[name], self.masks[name]
        target = self._targets[name]
        now = _towards(target, cubic_share(self._start, target.share, step, self._steps))
        if not now.atoms(weight.shape)[1]:
            return before
        try:
            return mask(self._score(weight, weight.grad), now, within=before)
        except InputError as error:
            raise InputError(f"layer {name!r}: {error}") from None


def _towards(target: Sparsity, share: float) -> Sparsity:
    """The target's pattern at a share that is not above the target's."""
    window = window_of(target.pattern)
    if window is None:
        return Sparsity(target.pattern, share)
    stay = max(window[0], window[1] - int(share * window[1] + 0.5))
    return Sparsity(f"{stay}:{window[1]}", 1 - stay / window[1])
