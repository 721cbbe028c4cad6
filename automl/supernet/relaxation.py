"""A network in which every decision is a mixture of its choices, differentiable in their shares.

The largest network runs once, and each decision is mixed where that costs least:

- channels: what layers read of a group is scaled by the summed shares of the choices that keep a unit, as in FBNetV2
  (Wan et al., "FBNetV2: Differentiable Neural Architecture Search for Spatial and Channel Dimensions", CVPR 2020). The
  scale is put on the weights that read, which is how channel groups are proven;
- kernels: the sum of the cropped kernels, each with zeros around it, as in Single-Path NAS (Stamoulis et al., 2019);
- depth: the branch of a residual block times the share of the choices with which it stays;
- resolution: the answers at each, mixed (Cai et al., "ProxylessNAS", ICLR 2019, whose two paths a step are up to who
  chooses the shares).

Where every share is 0 or 1 it is the sub-network.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from automl.compression import Compressor
from automl.compression.elastic import Elastic
from automl.compression.running import channels_last
from automl.searchers.points.gradient import check_elastic
from search_spaces.depth import DEPTH
from search_spaces.errors import InputError
from search_spaces.layers import LayerSpec
from search_spaces.resizing import resize
from search_spaces.space import CHANNELS, RESOLUTION, SearchSpace

KERNEL = "kernel"
PATHS = 2
"""Resolutions that are run in a step of training, as ProxylessNAS does it."""


class Relaxation:
    """The relaxed network of a compressor. Its weights are the compressor's and stay as they are; batch norms use the
    statistics of the batch.

    Args:
        compressor: knows the weights, which units a policy keeps and how kernels are cropped.
        space: whose decisions are mixed.

    Attributes:
        space: the same.
        resolution: number of the decision on it, None where there is none.
        paths: how many resolutions are run at once in training.

    Raises:
        InputError: the space decides on something else, or the network fixes its batch size.
    """

    def __init__(self, compressor: Compressor, space: SearchSpace) -> None:
        check_elastic(space)
        if not compressor.network.any_batch:
            raise InputError("a search by gradient runs the network on any number of images, this one fixes its batch")
        self.space = space
        numbers = [number for number, each in enumerate(space.decisions) if each.dimension == RESOLUTION]
        self.resolution = numbers[0] if numbers else None
        choices = space.decisions[numbers[0]].choices if numbers else (None,)
        self.paths = min(PATHS, len(choices))
        self._paths = [(choice, _Path(compressor.at(choice), space)) for choice in choices]

    def __call__(self, images: Tensor, shares: Sequence[Tensor]) -> Tensor:
        """The answers of the mixture, [N, classes].

        Args:
            images: [N, ...] at the data's own resolution.
            shares: of the choices of every decision, each [choices] and summing to 1. A resolution whose share is
                exactly 0 is not run.
        """
        if self.resolution is None:
            return self._paths[0][1](images, shares)
        weights = shares[self.resolution]
        answers = [
            weight * path(resize(images, size), shares)
            for weight, (size, path) in zip(weights, self._paths, strict=True)
            if float(weight.detach()) != 0.0
        ]
        return torch.stack(answers).sum(dim=0)


class _Path:
    """The relaxed network at one resolution."""

    def __init__(self, compressor: Compressor, space: SearchSpace) -> None:
        network = compressor.network
        self._module = network.prune({}).requires_grad_(False)
        for module in self._module.modules():
            if isinstance(module, _BatchNorm):  # without running statistics it takes the batch's, in eval mode as well
                module.running_mean = module.running_var = None
        self._gates = _with_gates(self._module, space)
        self._kept = _kept_units(compressor, space)
        weights = {name: self._module.get_parameter(network.weight_names[name]) for name in network.units}
        layers = {spec.name: spec for spec in network.graph.full_layers}
        elastic = compressor.elastic or Elastic({})
        self._kernels = {
            layer: (number, _cropped(weights[layer], layers[layer], decision.choices, elastic))
            for number, decision in enumerate(space.decisions)
            if decision.dimension == KERNEL
            for layer in decision.targets
        }
        first = np.cumsum([0, *(group.width for group in network.graph.groups)])
        self._widths = [group.width for group in network.graph.groups]
        self._reading: dict[str, tuple[Tensor, int]] = {}
        self._weights = {name: (network.weight_names[name], weight) for name, weight in weights.items()}
        for name, units in network.units.items():
            group, unit = np.asarray(units.in_group), np.asarray(units.in_unit)
            if name in layers and not layers[name].depthwise and any(index in self._kept for index in group.tolist()):
                places = np.where(group >= 0, first[group] + unit, first[-1])
                self._reading[name] = (torch.from_numpy(places), layers[name].groups)

    def __call__(self, images: Tensor, shares: Sequence[Tensor]) -> Tensor:
        whole = [torch.ones(width) for width in self._widths]
        for group, (number, kept) in self._kept.items():
            whole[group] = shares[number] @ kept
        scales = torch.cat([*whole, torch.ones(1)])
        tensors = {name: shares[number] @ stays for name, (number, stays) in self._gates.items()}
        for layer in {**self._kernels, **self._reading}:
            name, parameter = self._weights[layer]
            weight: Tensor = parameter
            if layer in self._kernels:
                number, kernels = self._kernels[layer]
                weight = torch.tensordot(shares[number], kernels, dims=1)
            if layer in self._reading:
                places, groups = self._reading[layer]
                weight = _scaled(weight, scales[places], groups)
            tensors[name] = weight
        answers: Tensor = functional_call(self._module, tensors, (channels_last(images),))
        return answers


def _scaled(weight: Tensor, scale: Tensor, groups: int) -> Tensor:
    """A weight [out, in / groups, ...] whose inputs are scaled, [in]."""
    blocks = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return (blocks * scale.reshape(groups, 1, -1, 1)).reshape(weight.shape)


def _kept_units(compressor: Compressor, space: SearchSpace) -> Mapping[int, tuple[int, Tensor]]:
    """By number of a channel group that has a choice, the decision and which units each choice keeps,
    [choices, units]."""
    compressor.kept(space.cheapest())  # refuses units that cannot be ranked
    groups = {group.name: (index, group.width) for index, group in enumerate(compressor.network.graph.groups)}
    found = {}
    for number, decision in enumerate(space.decisions):
        if decision.dimension == CHANNELS:
            (name,) = decision.targets
            index, width = groups[name]
            kept = torch.zeros(len(decision.choices), width)
            for row, count in zip(kept, decision.choices, strict=True):
                row[torch.from_numpy(compressor.order[name][:count])] = 1.0
            found[index] = (number, kept)
    return found


def _cropped(weight: Tensor, spec: LayerSpec, widths: Sequence[int | None], elastic: Elastic) -> Tensor:
    """A kernel under every choice of how wide it stays, with zeros around it, [choices, out, in, *kernel]."""
    found = []
    for width in widths:
        kernel = weight if width is None else elastic.cropped(weight, spec.cropped(width))
        margins = [(whole - side) // 2 for whole, side in zip(weight.shape[2:], kernel.shape[2:], strict=True)]
        found.append(F.pad(kernel, [margin for margin in reversed(margins) for _ in range(2)]))
    return torch.stack(found)


def _with_gates(module: fx.GraphModule, space: SearchSpace) -> Mapping[str, tuple[int, Tensor]]:
    """Multiply the branch of every block that can go by a buffer, in place; by the buffer's name the decision, and
    with which choices the block stays, [choices]."""
    nodes: Mapping[str, Any] = {node.name: node for node in module.graph.nodes}
    found = {}
    for number, decision in enumerate(space.decisions):
        for place, target in enumerate(decision.targets if decision.dimension == DEPTH else ()):
            block = space.depths.blocks[target]
            total, name = nodes[block.sum], f"stays_{block.sum}"
            module.register_buffer(name, torch.ones(()), persistent=False)
            branch = total.args[1 - block.identity]
            with module.graph.inserting_before(total):
                scaled = module.graph.call_function(torch.mul, (branch, module.graph.get_attr(name)))
            total.update_arg(1 - block.identity, scaled)
            found[name] = (number, torch.tensor([float(choice > place) for choice in decision.choices]))
    module.recompile()
    return found
