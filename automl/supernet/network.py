"""The supernet: the largest network, whose weights every sub-network of a search space shares."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from automl.compression.blocks import without_blocks
from automl.compression.elastic import Elastic, IntArray
from automl.compression.kernels import crop_kernels, cropped_layers
from search_spaces.capture import PrunableNetwork
from search_spaces.graph import ModelGraph
from search_spaces.layers import LayerSpec
from search_spaces.policy import CompressionPolicy
from search_spaces.resizing import resize
from search_spaces.space import SearchSpace

HELD_SETTINGS = 64
"""Sub-networks whose graphs are held: drawing one anew takes 8 ms for ResNet-20, 19 ms for MobileNetV2."""

KERNEL = "kernel"


class Supernet(nn.Module):
    """One network whose sub-networks are the policies of a search space.

    A sub-network runs on slices of the shared weights, through which gradients flow: the first units of each channel
    group in an order of importance, the middle of kernels through transforms that are learned, the first blocks of
    each row of residual blocks, images of any resolution. Any network that can be captured will do.

    In train mode batch norm uses the statistics of the batch and leaves the shared ones alone; in eval mode it uses
    slices of those, which are another network's: `automl.compression.Compressor` cuts a sub-network out for good and
    finds its own.

    Args:
        network: as captured, at every resolution of the space; its weights are copied.
        space: what sub-networks differ in.
        elastic: the order of channels; and transforms, where some were learned before.

    Attributes:
        largest: the network itself; its parameters are the shared ones.
        space: of what it is trained for, without bits, zeros and ranks, which come after cutting out.
        history: of its training, a record an epoch (see `automl.supernet.training.SupernetReport`).
    """

    def __init__(self, network: PrunableNetwork, space: SearchSpace, elastic: Elastic) -> None:
        super().__init__()
        self.space = elastic_space(space)
        self.history: list[dict[str, Any]] = []
        self.largest = network.prune({})
        self.transforms = nn.ParameterDict(
            {
                _path(key): elastic.transforms.get(key, torch.eye(size)).clone()
                for key, size in transform_sizes(self.space).items()
            }
        )
        for index, units in enumerate(_units(network.graph, elastic.order).values()):
            self.register_buffer(f"order_{index}", torch.from_numpy(units))
        shared = {name: tensor for name, tensor in self.largest.state_dict().items() if tensor.ndim}
        self._shapes = {name: tensor.shape for name, tensor in shared.items()}
        # each weight's own position in place of it: pruned, it says where the weights of a sub-network come from
        self._positions = network.holding(
            {name: torch.arange(tensor.numel(), dtype=torch.float64).view_as(tensor) for name, tensor in shared.items()}
        )
        self._settings: OrderedDict[Any, _Setting] = OrderedDict()

    @property
    def graph(self) -> ModelGraph:
        """Of the largest network."""
        return self._positions.graph

    @property
    def elastic(self) -> Elastic:
        """The order of channels and the transforms, copied."""
        order = {
            group.name: self.get_buffer(f"order_{index}").cpu().numpy().copy()
            for index, group in enumerate(self.graph.groups)
        }
        learned = {_key(path): each.detach().cpu().clone() for path, each in self.transforms.items()}
        return Elastic(order, learned)

    @property
    def weights(self) -> dict[str, Tensor]:
        """Those of the largest network, by qualified name, copied."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.largest.state_dict().items()}

    @property
    def network(self) -> PrunableNetwork:
        """The largest network with the weights as they are, copied."""
        return self._positions.holding(self.weights)

    def reorder(self, order: Mapping[str, IntArray]) -> None:
        """Sort the units of channel groups anew, in place; what was learned by then is in the weights that stay."""
        for index, units in enumerate(_units(self.graph, order).values()):
            self.get_buffer(f"order_{index}").copy_(torch.from_numpy(units))
        self._settings.clear()

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As of any module; the order may be another one then."""
        self._settings.clear()
        return super().load_state_dict(*args, **kwargs)

    def forward(self, images: Tensor, policy: CompressionPolicy) -> Tensor:
        """What a sub-network answers.

        Args:
            images: [N, C, H, W] at the data's own resolution; they are brought to the policy's.
            policy: of the space; of what it says only channels, kernels, blocks and the resolution count.

        Returns:
            Logits [N, classes].

        Raises:
            InputError: the policy is not one for this network.
        """
        setting = self._setting(policy)
        shared = dict(self.largest.named_parameters())
        learned = Elastic({}, {_key(path): each for path, each in self.transforms.items()})
        tensors = {}
        for name, cut in setting.cuts.items():
            if name in shared:
                tensors[name] = cut.of(shared[name], learned)
            else:  # a copy: in train mode batch norm writes to its statistics
                tensors[name] = cut.of(self.largest.get_buffer(name), learned).clone()
        setting.module.train(self.training)
        given = channels_last(resize(images, policy.resolution))  # half the time where convolutions are depthwise
        answers: Tensor = functional_call(setting.module, tensors, (given,))
        return answers

    def _setting(self, policy: CompressionPolicy) -> "_Setting":
        graph = self.graph.apply(policy)
        device = next(self.largest.parameters()).device
        key = (policy.resolution, graph.kept, graph.removed, tuple(cropped_layers(graph)), device)
        found = self._settings.pop(key, None)
        if found is None:
            found = self._drawn(policy, graph, device)
        self._settings[key] = found
        if len(self._settings) > HELD_SETTINGS:
            self._settings.popitem(last=False)
        return found

    def _drawn(self, policy: CompressionPolicy, graph: ModelGraph, device: torch.device) -> "_Setting":
        groups = enumerate(self.graph.groups)
        order = {group.name: self.get_buffer(f"order_{index}").cpu().numpy() for index, group in groups}
        kept = {
            group.name: np.sort(order[group.name][:count])
            for group, count in zip(self.graph.groups, graph.kept, strict=True)
        }
        module = without_blocks(self._positions.at(policy.resolution).prune(kept), graph.removed)
        cropped = {f"{spec.name}.weight": spec for spec in cropped_layers(graph)}
        cuts = {
            name: _Cut.read(positions, self._shapes[name], cropped.get(name), device)
            for name, positions in module.state_dict().items()
            if name in self._shapes
        }
        crop_kernels(module, graph)
        for name in cuts:
            _empty(module, name)
        return _Setting(module.to(device), cuts)


@dataclass(frozen=True, eq=False)
class _Cut:
    """Where a tensor of a sub-network lies in the shared one.

    Attributes:
        lines: for each axis the indices that stay, or None for all.
        cropped: the layer, where the tensor is the weight of one whose kernel is cropped.
    """

    lines: tuple[Tensor | None, ...]
    cropped: LayerSpec | None

    @classmethod
    def read(cls, positions: Tensor, shape: torch.Size, cropped: LayerSpec | None, device: torch.device) -> "_Cut":
        """From where each value of the tensor stands in the shared one, which has that shape."""
        lines: list[Tensor | None] = []
        for axis, size in enumerate(shape):
            first = positions.detach().movedim(axis, 0).flatten(1)[:, 0] if positions.ndim > 1 else positions.detach()
            line = first.long() // prod(shape[axis + 1 :]) % size
            lines.append(None if len(line) == size else line.to(device))
        return cls(tuple(lines), cropped)

    def of(self, shared: Tensor, learned: Elastic) -> Tensor:
        """The sub-network's tensor, differentiable."""
        found = shared
        for axis, line in enumerate(self.lines):
            if line is not None:
                found = found.index_select(axis, line)
        return found if self.cropped is None else learned.cropped(found, self.cropped)


@dataclass(frozen=True, eq=False)
class _Setting:
    """A sub-network's graph without its weights, and where each of those comes from, by name."""

    module: fx.GraphModule
    cuts: Mapping[str, _Cut]


def channels_last(images: Tensor) -> Tensor:
    """Images [N, C, H, W] laid out channels last, so that depthwise convolutions take half the time on CPUs.

    Of one channel any layout is both, and torch goes by the strides: so they get those of several.
    """
    if images.ndim != 4:  # no images
        return images
    _, channels, height, width = images.shape
    strides = (channels * height * width, 1, channels * width, channels)
    return images.contiguous(memory_format=torch.channels_last).as_strided(images.shape, strides)


def elastic_space(space: SearchSpace) -> SearchSpace:
    """What of a space a supernet is trained for."""
    return space.elastic


def transform_sizes(space: SearchSpace) -> dict[str, int]:
    """The number of weights in the middle of a kernel, for every width that the space may crop it to: "layer.width"."""
    specs = {spec.name: spec for spec in space.graph.full_layers}
    return {
        f"{layer}.{width}": prod(specs[layer].cropped(width).kernel)
        for decision in space.decisions
        if decision.dimension == KERNEL
        for layer in decision.targets
        for width in decision.choices
        if width is not None
    }


def _units(graph: ModelGraph, order: Mapping[str, IntArray]) -> dict[str, IntArray]:
    """The order of every group; of those that have none their own."""
    return {group.name: np.array(order.get(group.name, np.arange(group.width))) for group in graph.groups}


def _path(key: str) -> str:
    """A name that torch takes for a parameter."""
    return key.replace(".", "/")


def _key(path: str) -> str:
    return path.replace("/", ".")


def _empty(module: nn.Module, name: str) -> None:
    """Let go of a tensor for which another one is put in at every call."""
    owner, _, last = name.rpartition(".")
    part = module.get_submodule(owner)
    for store in (part._parameters, part._buffers):
        if last in store:
            store[last] = torch.empty(0)  # type: ignore[assignment]
