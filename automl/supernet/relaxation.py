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
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from automl.compression import Compressor
from automl.compression.elastic import Elastic
from automl.searchers.points.gradient import check_elastic
from automl.supernet.network import channels_last
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
        self._networks = [(choice, _Path(compressor.at(choice), space)) for choice in choices]

    def __call__(self, images: Tensor, shares: Sequence[Tensor]) -> Tensor:
        """The answers of the mixture, [N, classes].

        Args:
            images: [N, ...] at the data's own resolution.
            shares: of the choices of every decision, each [choices] and summing to 1. A resolution whose share is
                exactly 0 is not run.
        """
        if self.resolution is None:
            return self._networks[0][1](images, shares)
        weights = shares[self.resolution]
        answers = [
            weight * path(resize(images, size), shares)
            for weight, (size, path) in zip(weights, self._networks, strict=True)
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
        self._widths = [group.width for group in network.graph.groups]
        self._kept = _kept_units(compressor, space)
        weights = (
            _Weight.of(self._module, spec, compressor, space, self._kept)
            for spec in network.graph.full_layers
            if spec.name in network.units
        )
        self._weights = [weight for weight in weights if weight.kernels is not None or weight.reads is not None]

    def __call__(self, images: Tensor, shares: Sequence[Tensor]) -> Tensor:
        scales = [torch.ones(width) for width in self._widths]
        for group, (number, kept) in self._kept.items():
            scales[group] = shares[number] @ kept
        units = torch.cat([*scales, torch.ones(1)])
        tensors = {name: shares[number] @ stays for name, (number, stays) in self._gates.items()}
        tensors |= {weight.name: weight.mixed(shares, units) for weight in self._weights}
        answers: Tensor = functional_call(self._module, tensors, (channels_last(images),))
        return answers


@dataclass(frozen=True, eq=False)
class _Weight:
    """The weight of a layer.

    Attributes:
        name: qualified.
        whole: the largest network's, [out, in / groups, *kernel].
        groups: of the layer.
        kernels: the decision on its kernel and what that is under each choice, [choices, *whole.shape]; None without.
        reads: where each input channel stands among the units of all groups in a row, [in], after which 1 stands for
            what always stays; None where no unit that it reads can go.
    """

    name: str
    whole: Tensor
    groups: int
    kernels: tuple[int, Tensor] | None
    reads: Tensor | None

    @classmethod
    def of(
        cls,
        module: fx.GraphModule,
        spec: LayerSpec,
        compressor: Compressor,
        space: SearchSpace,
        kept: Mapping[int, tuple[int, Tensor]],
    ) -> "_Weight":
        """That of a layer, with what the space decides of it."""
        network = compressor.network
        name = network.weight_names[spec.name]
        whole = module.get_parameter(name)
        kernels = None
        for number, decision in enumerate(space.decisions):
            if decision.dimension == KERNEL and spec.name in decision.targets:
                kernels = (number, _cropped(whole, spec, decision.choices, compressor.elastic or Elastic({})))
        reads = None
        group, unit = (
            np.asarray(each) for each in (network.units[spec.name].in_group, network.units[spec.name].in_unit)
        )
        if not spec.depthwise and not kept.keys().isdisjoint(group.tolist()):
            first = np.cumsum([0, *(each.width for each in network.graph.groups)])
            reads = torch.from_numpy(np.where(group >= 0, first[group] + unit, first[-1]))
        return cls(name, whole, spec.groups, kernels, reads)

    def mixed(self, shares: Sequence[Tensor], units: Tensor) -> Tensor:
        """The weight under shares of choices, where so much of every unit stays."""
        weight = self.whole
        if self.kernels is not None:
            number, kernels = self.kernels
            weight = torch.tensordot(shares[number], kernels, dims=1)
        return weight if self.reads is None else _scaled(weight, units[self.reads], self.groups)


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
