"""Masks, quantisers and ranks in force while a compressed network is trained further.

Training sees what will be stored: weights are masked and quantised anew in every forward pass, gradients pass straight
through, and what was learned is folded back into plain numbers at the end. A layer that was taken apart is trained as
the sequence it is.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from automl.compression.quantisation import (
    ActivationQuantiser,
    LearnedActivationStep,
    LearnedClip,
    LearnedWeightStep,
    Quantised,
    StraightThrough,
)
from automl.compression.quantisation.activations import UniformActivation
from automl.compression.sites import find_sites
from automl.compression.sparsity import GradualSparsity
from automl.compression.structure import QUANTISERS, quantiser_name
from automl.compression.treatments import Compressed
from search_spaces.errors import InputError, did_you_mean
from search_spaces.sparsity import Sparsity

LEARNED = ("nothing", "step", "clip")
"""What quantisers learn: the weights alone; the step between levels, too (LSQ); of activations the bound (PACT)."""


class Masked(nn.Module):
    """Weights that are zero where a mask says so, and stay it.

    Args:
        mask: True for the weights that stay.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """[out, ...] -> the same, masked."""
        return weight.masked_fill(~self.mask, 0.0)


def fine_tune(
    compressed: Compressed,
    train: Callable[[nn.Module], None],
    learn: str = "nothing",
    gradual: GradualSparsity | None = None,
) -> Compressed:
    """Train a compressed network with all that was done to it in force; it is changed in place.

    How far a gradual sparsity has come stands in the module's state while it is trained, so a training that saves that
    (see `automl.training_state`) goes on where it was.

    Args:
        compressed: what to train.
        train: trains the module it is given in place.
        learn: one of `LEARNED`; schemes without a step or a bound learn nothing all the same.
        gradual: how zeros grow in number where the network has fewer than its policy asks for, as `Compressor.compress`
            leaves it with `sparse=False`; None for all at once before the training. A step is a backward pass.

    Returns:
        The same network with its new codes, scales and masks; as sparse as its policy says, however it was trained.

    Raises:
        InputError: there is nothing of that name to learn, or the schedule does not fit a layer.
    """
    if learn not in LEARNED:
        raise InputError(f"quantisers learn one of {', '.join(LEARNED)}, got {learn!r}{did_you_mean(learn, LEARNED)}")
    module, weights, masks = compressed.module, dict(compressed.weights), dict(compressed.masks)
    gradual = gradual or GradualSparsity()
    targets = {layer.name: layer.sparsity for layer in compressed.graph.layers}
    layers = sorted({*masks, *weights})  # in every process the same order, which an optimiser's state goes by
    sites = find_sites(module, layers)
    growing: dict[str, _Growing] = {}
    with ExitStack() as hooks:
        for layer in layers:
            owner, name = _owner(module, sites[layer].weight)
            weight, target = owner.get_parameter(name), targets[layer]
            rule = _rule(weight, weights.get(layer), masks.get(layer), learn)
            if target is not None:
                growing[layer] = _Growing(layer, rule, weight, target, gradual)
                hooks.callback(growing[layer].stop)
            parametrize.register_parametrization(owner, name, rule, unsafe=True)
            if isinstance(owner, nn.RNNBase):  # it computes with a list that it made of its weights before
                hooks.callback(owner.register_forward_pre_hook(_refresh).remove)
        _learn_activations(compressed, learn)
        train(module)
    module.eval()
    for layer, zeros in growing.items():
        masks[layer] = zeros.finish()
    for layer in layers:
        owner, name = _owner(module, sites[layer].weight)
        rules: Any = owner.parametrizations
        rule, latent = rules[name][0], rules[name].original.detach()
        if isinstance(rule, Masked):
            values = rule(latent)
        else:
            weights[layer] = rule.fold(latent)
            values = weights[layer].values
        parametrize.remove_parametrizations(owner, name, leave_parametrized=True)
        with torch.no_grad():
            owner.get_parameter(name).copy_(values)
        if isinstance(owner, nn.RNNBase):
            _refresh(owner)
    _fold_activations(compressed)
    return replace(compressed, weights=weights, masks=masks)


def _rule(weight: Tensor, quantised: Quantised | None, mask: Tensor | None, learn: str) -> nn.Module:
    if quantised is None:
        if mask is None:
            raise TypeError("a layer that is trained under a rule is sparse or quantised")
        return Masked(mask)
    if learn == "step" and quantised.format.scheme == "symmetric":
        return LearnedWeightStep(weight.detach(), quantised.format, mask)
    return StraightThrough(quantised.format, mask, quantised.method)


class _Growing:
    """The zeros of a layer in training: the mask of its rule, which follows a schedule.

    The steps that were taken are a buffer of the rule, so that they are saved with the module's state.
    """

    def __init__(
        self, layer: str, rule: nn.Module, weight: nn.Parameter, target: Sparsity, schedule: GradualSparsity
    ) -> None:
        self._layer, self._rule, self._weight = layer, rule, weight
        self._target, self._schedule = target, schedule
        rule.register_buffer("steps_taken", torch.tensor(0))
        trained = schedule.steps and weight.requires_grad
        self._choose(0 if trained else schedule.steps)
        hook: Any = weight.register_post_accumulate_grad_hook  # untyped
        self._hook = hook(self._advance) if trained else None

    def stop(self) -> None:
        """The training has ended, one way or another."""
        if self._hook is not None:
            self._hook.remove()

    def finish(self) -> Tensor:
        """The final mask, in force whatever number of steps were taken."""
        self._choose(self._schedule.steps)
        return self._rule.get_buffer("mask")

    def _advance(self, weight: Tensor) -> None:
        taken = self._rule.get_buffer("steps_taken").add_(1)
        if self._schedule.due(int(taken)):
            self._choose(int(taken))

    def _choose(self, step: int) -> None:
        before, weight = self._rule.get_buffer("mask"), self._weight
        try:
            found = self._schedule.grow(before, self._target, step, weight.detach(), weight.grad)
        except InputError as error:
            raise InputError(f"layer {self._layer!r}: {error}") from None
        self._rule.mask = found


def _learn_activations(compressed: Compressed, learn: str) -> None:
    if learn == "nothing":
        return
    for layer in compressed.graph.layers:
        if layer.activation_format is None:
            continue
        name = quantiser_name(layer.name)
        found = compressed.module.get_submodule(name)
        if isinstance(found, UniformActivation):
            from_zero = int(found.zero_point) == found.least
            learned = LearnedClip(found) if learn == "clip" and from_zero else LearnedActivationStep(found)
            compressed.module.set_submodule(name, learned)


def _fold_activations(compressed: Compressed) -> None:
    holder = getattr(compressed.module, QUANTISERS, None)
    for name, found in list(holder.named_children()) if isinstance(holder, nn.Module) else []:
        if isinstance(found, LearnedActivationStep | LearnedClip):
            folded: ActivationQuantiser = found.fold()
            compressed.module.set_submodule(f"{QUANTISERS}.{name}", folded)


def _owner(module: nn.Module, parameter: str) -> tuple[nn.Module, str]:
    """The module that a parameter belongs to, and its name there."""
    path, _, name = parameter.rpartition(".")
    return module.get_submodule(path), name


def _refresh(module: nn.Module, *_: object) -> None:
    module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]  # type: ignore[assignment, union-attr]
