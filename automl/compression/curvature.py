"""What each choice of a layer should cost in loss, by the curvature of the loss instead of by evaluations.

HAWQ-V2 (Dong et al., NeurIPS 2020): the mean of the Hessian's diagonal over the weights of a layer, times the squared
distance that the choice moves them. The trace is estimated without the Hessian (Hutchinson, "A stochastic estimator of
the trace of the influence matrix", 1990): a vector of random signs v has the expectation v'Hv = tr H.
"""

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from automl.compression.importance.taylor import cross_entropy
from automl.compression.pipeline import Compressor
from search_spaces.errors import InputError
from search_spaces.space import CHANNELS, SearchSpace

WEIGHTS = ("bits", "weight_bits", "sparsity", "rank", CHANNELS)
"""Dimensions that change weights, which is all that the Hessian of the weights knows of."""
BATCH = 64
LEAST = 1e-2
"""Share of the typical trace that the least has: one that is found to be negative makes no choice free."""


def check_curved(space: SearchSpace) -> None:
    """InputError where something is decided that leaves weights as they are."""
    for decision in space.decisions:
        if decision.dimension not in WEIGHTS:
            raise InputError(
                f"the Hessian of the weights says nothing of {decision.name!r}: decide on coupled_bits, channels, "
                "sparsity and rank, or measure sensitivities (sensitivity: loss)"
            )


def mean_traces(
    module: nn.Module, weights: Mapping[str, Tensor], images: Tensor, labels: Tensor, *, draws: int = 8, seed: int = 0
) -> dict[str, float]:
    """Mean of the diagonal of the Hessian of the cross-entropy, for each of some weights.

    Args:
        module: the network, in eval mode; its gradients are not touched.
        weights: parameters of the module, by the name that they are returned under.
        images: [N, ...].
        labels: of the images.
        draws: vectors of signs a batch; all weights share one, whose mixed terms have the expectation 0.
        seed: of the vectors.

    Returns:
        By name; positive near a minimum of the loss.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = list(weights.values())
    wanted = [tensor.requires_grad for tensor in tensors]
    totals = [0.0] * len(tensors)
    try:
        for tensor in tensors:
            tensor.requires_grad_(True)
        for batch, answers in zip(torch.split(images, BATCH), torch.split(labels, BATCH), strict=True):
            loss = cross_entropy(module(batch), answers).mean()
            gradients = torch.autograd.grad(loss, tensors, create_graph=True)
            for draw in range(draws):
                signs = [1.0 - 2.0 * torch.randint(2, each.shape, generator=generator) for each in tensors]
                along = torch.stack([(each * sign).sum() for each, sign in zip(gradients, signs, strict=True)]).sum()
                products = torch.autograd.grad(along, tensors, retain_graph=draw < draws - 1)
                for index, (product, sign) in enumerate(zip(products, signs, strict=True)):
                    totals[index] += float((product * sign).double().sum()) * len(batch) / len(images) / draws
    finally:
        for tensor, before in zip(tensors, wanted, strict=True):
            tensor.requires_grad_(before)
    return {name: total / tensor.numel() for (name, tensor), total in zip(weights.items(), totals, strict=True)}


def curvature_losses(
    compressor: Compressor, space: SearchSpace, images: Tensor, labels: Tensor
) -> list[npt.NDArray[np.float64]]:
    """The loss of every choice of every decision: mean trace times squared distance, summed over the layers it touches.

    A channel group touches the layers that produce it, whose rows become zero.

    Args:
        compressor: applies policies.
        space: whose decisions they are.
        images: training images [N, C, H, W].
        labels: of the images.

    Raises:
        InputError: something is decided that leaves weights as they are.
    """
    check_curved(space)
    whole = compressor.network.prune({})
    names = compressor.network.weight_names
    weights = {layer.name: whole.get_parameter(names[layer.name]) for layer in space.graph.full_layers}
    traces = mean_traces(whole, weights, images, labels, seed=compressor.options.seed)
    typical = float(np.median(np.abs(list(traces.values()))))
    traces = {name: max(trace, LEAST * typical) for name, trace in traces.items()}
    found = [np.zeros(len(decision.choices)) for decision in space.decisions]
    for dimension in {decision.dimension for decision in space.decisions}:
        numbers = [number for number, each in enumerate(space.decisions) if each.dimension == dimension]
        for choice in range(max(len(space.decisions[number].choices) for number in numbers) - 1):
            point = space.greatest  # layers do not change each other's weights: all decisions of a kind in one go
            point[numbers] = np.minimum(choice, point[numbers])
            moved = _moved(compressor, space, point, weights)
            for number in numbers:
                if choice < len(found[number]) - 1:
                    layers = _touched(compressor, space, number)
                    found[number][choice] = sum(traces[layer] * moved[layer] for layer in layers)
    return found


def _touched(compressor: Compressor, space: SearchSpace, number: int) -> Sequence[str]:
    """The layers whose weights a decision changes."""
    decision = space.decisions[number]
    if decision.dimension != CHANNELS:
        return decision.targets
    group = next(index for index, each in enumerate(space.graph.groups) if each.name == decision.targets[0])
    return [name for name, units in compressor.network.units.items() if (np.asarray(units.out_group) == group).any()]


def _moved(
    compressor: Compressor, space: SearchSpace, point: npt.NDArray[np.int64], weights: Mapping[str, Tensor]
) -> dict[str, float]:
    """Squared distance of each layer's weights from what they were, under the policy of a point."""
    policy = space.decode(point)
    kept = compressor.kept(policy)
    if any(len(kept[group.name]) < group.width for group in space.graph.groups):
        return _cut(compressor, kept, weights)
    module = compressor.compress(policy, reconstruct=False).module
    names = compressor.network.weight_names
    return {
        name: float((_effective(module, name, names[name]) - weight.detach()).double().square().sum())
        for name, weight in weights.items()
    }


def _cut(compressor: Compressor, kept: Mapping[str, Sequence[int]], weights: Mapping[str, Tensor]) -> dict[str, float]:
    """Squared sum of the rows [out] that go."""
    groups = [set(kept[group.name]) for group in compressor.network.graph.groups]
    found = {}
    for name, weight in weights.items():
        units = compressor.network.units[name]
        places = zip(np.asarray(units.out_group).tolist(), np.asarray(units.out_unit).tolist(), strict=True)
        gone = [row for row, (group, unit) in enumerate(places) if group >= 0 and unit not in groups[group]]
        found[name] = float(weight.detach()[gone].double().square().sum())
    return found


def _effective(module: nn.Module, layer: str, weight: str) -> Tensor:
    """The weight that a layer comes to; of one that was taken apart that of the chain, which is linear."""
    part = dict(module.named_modules()).get(layer)
    if not isinstance(part, nn.Sequential):
        return module.get_parameter(weight).detach()
    first, *others = [each.get_parameter("weight").detach() for each in part]
    return reduce(lambda before, after: torch.einsum("or...,ri...->oi...", after, before), others, first)
