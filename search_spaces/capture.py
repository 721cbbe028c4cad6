"""From an `nn.Module` to its graph, and from kept channels to a smaller network."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from search_spaces.channels import ChannelStructure
from search_spaces.describe import describe
from search_spaces.errors import InputError, did_you_mean
from search_spaces.graph import ModelGraph
from search_spaces.labels import IntArray, LabelPropagation
from search_spaces.layers import LayerSpec
from search_spaces.proof import prove as prove_groups
from search_spaces.rebuild import build, with_tensors
from search_spaces.resizing import resize
from search_spaces.resolution import Resolution, text
from search_spaces.tensors import NetworkTensors
from search_spaces.trace import trace


@dataclass(frozen=True)
class LayerUnits:
    """For each entry of a layer's channel dimensions: its channel group (-1 where it stays) and unit in that group."""

    in_group: IntArray
    in_unit: IntArray
    out_group: IntArray
    out_unit: IntArray


class PrunableNetwork:
    """A captured network: its graph, and the means to cut channels out of it for good.

    The model given is copied, never changed.

    Args:
        model: a network of one input and one output tensor.
        example_input: [N, ...]; its shape without the batch is the network's input shape.
        prove: check each channel group against the zeroed network, and refuse those that fail.
        resolutions: other heights and widths that the network is to be known at; see `at`.

    Attributes:
        graph: the uncompressed `ModelGraph`.
        units: by layer name, which unit each of its channels is.
        weight_names: by layer name, the qualified name of its weight.
        carried: by the name of a batch norm, the channel group (-1 where it stays) and unit of each of its channels.
        any_batch: whether pruned networks take any batch size; some networks fix that of the example.

    Raises:
        InputError: torch cannot run or export the model on the example input; or at one of the resolutions, or it has
            other layers or channel groups there.
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: torch.Tensor,
        *,
        prove: bool = True,
        resolutions: Sequence[Resolution] = (),
    ) -> None:
        self._template = trace(model, example_input)
        labels = LabelPropagation(self._template).run()
        structure = ChannelStructure(self._template, labels)
        if prove:
            structure = prove_groups(structure, model, example_input)
        self._structure = structure
        self.any_batch = self._template.any_batch
        self.graph: ModelGraph = describe(structure)
        self.units: Mapping[str, LayerUnits] = {
            name: LayerUnits(*(part for side in (sides.inputs, sides.outputs) for part in self._place(side)))
            for name, sides in labels.layers.items()
        }
        self.weight_names = {name: self._template.weight_name(name) for name in labels.layers}
        self.carried = {name: self._place(channels) for name, channels in labels.carriers.items()}
        self._group_index = {group.name: index for index, group in enumerate(structure.groups)}
        others = {
            size: self._captured_at(size, model, example_input, prove)
            for size in dict.fromkeys(resolutions)
            if size != self.graph.input_shape[-2:]
        }
        self._at: dict[Resolution, PrunableNetwork] = {_size_of(self.graph): self, **others} if others else {}
        self.graph = self.graph.knowing([other.graph for other in others.values()])
        for size, other in others.items():
            other.graph, other._at = self.graph.at(size), self._at

    def at(self, resolution: Resolution | None) -> "PrunableNetwork":
        """The network that reads images of another resolution, with the same weights; None is the network itself.

        Raises:
            InputError: it was not captured at that resolution.
        """
        graph = self.graph.at(resolution)
        return self if graph is self.graph else self._at[_size_of(graph)]

    def holding(self, tensors: Mapping[str, torch.Tensor]) -> "PrunableNetwork":
        """The same network with other weights, at every resolution; tensors that are absent stay.

        Args:
            tensors: by qualified name, as `prune({})` has them, each of the shape of the one it replaces. They are not
                copied; whether a parameter has a gradient stays as it is.
        """
        networks = {size: copy.copy(network) for size, network in {_size_of(self.graph): self, **self._at}.items()}
        for network in networks.values():
            network._template = with_tensors(network._template, tensors)
            network._at = networks if self._at else {}
        return networks[_size_of(self.graph)]

    def _captured_at(
        self, size: Resolution, model: nn.Module, example_input: torch.Tensor, prove: bool
    ) -> "PrunableNetwork":
        """The network at another resolution, where it is the same but for its sizes."""
        try:
            if not example_input.is_floating_point() or example_input.ndim != 4:
                raise InputError(
                    f"it reads {list(example_input.shape[1:])}, images are [C, H, W]; leave resolutions out"
                )
            found = PrunableNetwork(model, resize(example_input, size), prove=prove)
            if found.graph.groups != self.graph.groups:
                raise InputError("other channels of it can be pruned then; leave that resolution out")
            if list(map(_unsized, found.graph.full_layers)) != list(map(_unsized, self.graph.full_layers)):
                raise InputError("it has other layers then; leave that resolution out")
        except InputError as error:
            raise InputError(f"the network does not take images of {text(size)} pixels: {error}") from None
        return found

    def prune(self, kept: Mapping[str, npt.ArrayLike]) -> torch.fx.GraphModule:
        """The network without the units that are not kept.

        Args:
            kept: by group name, the rising indices of the units that stay; a group that is absent keeps all.

        Returns:
            A plain network in eval mode with tensors of its own; the names of its tensors are the model's.

        Raises:
            InputError: an unknown group, an index out of range or twice, or none at all.
        """
        chosen = {}
        for name, units in kept.items():
            if name not in self._group_index:
                raise InputError(f"the network has no channel group {name!r}{did_you_mean(name, self._group_index)}")
            index = np.asarray(units, dtype=np.int64).reshape(-1)
            group = self._group_index[name]
            width = self._structure.groups[group].width
            if not len(index) or index[0] < 0 or index[-1] >= width or (np.diff(index) <= 0).any():
                raise InputError(
                    f"channel group {name!r} keeps rising unit indices from 0 to {width - 1}, at least one; "
                    f"got {index[:8].tolist()}{'...' if len(index) > 8 else ''}"
                )
            chosen[group] = index
        return build(self._structure, self._template, chosen)

    def _place(self, labels: torch.Tensor) -> tuple[IntArray, IntArray]:
        units = self._structure.unit_ids(labels)
        return self._structure.group_of[units], self._structure.index_of[units]


def capture_for_compiling(model: nn.Module, example_input: torch.Tensor) -> tuple[ModelGraph, NetworkTensors]:
    """The graph of a network for the batch size of the example, its groups not proven, and its constants.

    Raises:
        InputError: torch cannot run or export the model on the example input.
    """
    template = trace(model, example_input)
    structure = ChannelStructure(template, LabelPropagation(template).run())
    return describe(structure, len(example_input)), NetworkTensors(template)


def capture_graph(model: nn.Module, example_input: torch.Tensor) -> ModelGraph:
    """The graph of a network with its proven channel groups; see `PrunableNetwork`."""
    return PrunableNetwork(model, example_input).graph


def _size_of(graph: ModelGraph) -> Resolution:
    return graph.input_shape[-2], graph.input_shape[-1]


def _unsized(spec: LayerSpec) -> LayerSpec:
    """A layer whatever the size of its maps."""
    return replace(spec, input_size=(), output_size=(), positions=0)
