"""From labels to channel groups: which units there are, what each tensor dimension is made of, what cannot move.

Units with the same signature (how many entries they have in each layer and each tensor) are interchangeable and form
one `ChannelGroup`. Every tensor dimension then is an `Extent` over those groups.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from search_spaces.graph import ChannelGroup, Refusal
from search_spaces.label_tensors import run_move, varies
from search_spaces.labels import IntArray, LabelPropagation, Units
from search_spaces.layers import Extent
from search_spaces.operator_rules import MOVES
from search_spaces.template import PADS, Conv, Template, arguments, op_name, source_of

_RESIZED = {
    "reshape", "flatten", "permute", "transpose", "t", "movedim", "swapaxes", "slice", "select", "unsqueeze", "expand",
    "flip", "repeat", "repeat_interleave",
}  # fmt: skip
"""Moving operators that stay right for fewer channels once their sizes are rewritten."""


@dataclass(frozen=True, slots=True)
class Gather:
    """The net effect of a chain of moving operators on the channel axis.

    Attributes:
        source: the node whose channels are gathered.
        chain: the nodes that do so, in order; the last one gives the result.
        index: [channels of the result] which channel of the source each is; -1 for a padded one.
    """

    source: fx.Node
    chain: tuple[fx.Node, ...]
    index: IntArray


@dataclass
class ChannelStructure:
    """Channel groups, refusals and the units of every tensor of a template.

    Attributes:
        unit_arrays: for each node that gives a tensor, the unit of its entries, with size 1 along axes on which they
            do not differ; batch dimension first where the node has one.
        group_of, index_of: [units] the channel group of each unit (-1: stays) and its index in the group.
        gathers: chains that have to be written as a gather for some policies, by their last node.
    """

    template: Template
    labels: LabelPropagation
    refused: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.units: Units = self.labels.units()
        self.unit_arrays = self._unit_arrays()
        self.frozen: dict[int, str] = {**self.refused, **self.units.frozen}
        self.gathers = self._find_gathers()
        self._build_groups()

    @property
    def count(self) -> int:
        """Number of units, those that stay included."""
        return len(self.units.made)

    def unit_ids(self, labels: torch.Tensor) -> IntArray:
        """Unit of each label."""
        units: IntArray = self.units.of_label[labels.numpy()]
        return units

    def alive(self, kept: Mapping[int, IntArray]) -> npt.NDArray[np.bool_]:
        """[units] which units stay where group i keeps its units kept[i]; all of a group that is absent."""
        alive = np.ones(self.count, dtype=bool)
        for group, units in kept.items():
            members = np.array(self.members[group])
            alive[members] = False
            alive[members[units]] = True
        return alive

    def channel_axis(self, node: fx.Node) -> int | None:
        """The axis of a node's output (batch dimension counted) that shrinks; None where none does."""
        units = self.unit_arrays.get(node)
        if units is None or not (self.group_of[units] >= 0).any():
            return None
        return max(range(units.ndim), key=lambda axis: units.shape[axis])

    def extent(self, units: IntArray) -> Extent:
        """How a dimension with these units shrinks."""
        groups, counts = np.unique(self.group_of[units], return_counts=True)
        fixed = 0
        terms = []
        for group, count in zip(groups.tolist(), counts.tolist(), strict=True):
            if group < 0:
                fixed = count
            else:
                terms.append((group, count // self.groups[group].width))
        return Extent(fixed, tuple(terms))

    # -- tensors ---------------------------------------------------------------------------------------------------

    def _unit_arrays(self) -> dict[fx.Node, IntArray]:
        arrays = {}
        for node, value in self.labels.values.items():
            if not isinstance(value, torch.Tensor) or value.numel() == 0:
                continue
            for axis in range(value.ndim):
                if value.stride(axis) == 0:
                    value = value.narrow(axis, 0, 1)
            units = self.unit_ids(value)
            for axis in range(units.ndim):
                head = units.take([0], axis=axis)
                if units.shape[axis] > 1 and bool((units == head).all()):
                    units = head
            arrays[node] = units
        return arrays

    def _movable(self, units: IntArray) -> IntArray:
        """The same with all units that stay as -1."""
        stays = ~self.units.made
        stays[list(self.frozen)] = True
        return np.where(stays[units], -1, units)

    def _axes(self, node: fx.Node) -> int:
        """Number of axes along which what can be removed differs."""
        units = self.unit_arrays.get(node)
        if units is None:
            return 0
        units = self._movable(units)
        if (units < 0).all():
            return 0
        return sum(bool((units != units.take([0], axis=axis)).any()) for axis in range(units.ndim))

    # -- moving operators that have to become a gather ---------------------------------------------------------------

    def _sound(self, node: fx.Node) -> bool:
        """Whether a moving operator stays right for any policy once its sizes are rewritten."""
        name = op_name(node)
        source = source_of(node)
        if self._axes(source) == 0 and self._axes(node) == 0:
            return True
        if name not in _RESIZED and name not in PADS:
            return False
        if name in ("slice", "select"):
            found = arguments(node)
            differs = varies(torch.from_numpy(self._movable(self.unit_arrays[source])), found["dim"])
            if differs and (name == "select" or found["step"] != 1):
                return False
        return self._axes(node) <= 1

    def _find_gathers(self) -> dict[fx.Node, Gather]:
        """Collapse the chains with an unsound operator; what cannot be collapsed is frozen."""
        gathers: dict[fx.Node, Gather] = {}
        for node in self.template.graph.nodes:
            if not _moves(node):
                if self._axes(node) > 1:
                    self._stay(node, [node])
                continue
            if all(_moves(user) for user in node.users):
                continue
            chain = [node]
            while _moves(source_of(chain[0])):
                chain.insert(0, source_of(chain[0]))
            unsound = [position for position, step in enumerate(chain) if not self._sound(step)]
            if not unsound:
                continue
            found = self._collapse(chain, unsound[0], unsound[-1])
            if found is not None:
                gathers[found.chain[-1]] = found
                continue
            for position in unsound:
                self._stay(chain[position], [chain[position], source_of(chain[position])])
        return {node: gather for node, gather in gathers.items() if not all(self._sound(step) for step in gather.chain)}

    def _stay(self, node: fx.Node, touched: list[fx.Node]) -> None:
        """Freeze what an operator rearranges in a way that fewer channels do not allow."""
        where = node.meta["where"]
        reason = f"operator {op_name(node)!r}" + (f" in {where!r}" if where else "") + " rearranges them"
        for tensor in touched:
            units = np.unique(self.unit_arrays[tensor])
            for unit in units[self.units.made[units]].tolist():
                self.frozen.setdefault(unit, reason)

    def _collapse(self, chain: list[fx.Node], first: int, last: int) -> Gather | None:
        """The longest part of the chain around its unsound operators that only gathers channels."""
        for start in range(first + 1):
            for end in range(len(chain), last, -1):
                part = chain[start:end]
                source = source_of(part[0])
                index = self._net_effect(source, part)
                if index is not None:
                    return Gather(source, tuple(part), index)
        return None

    def _net_effect(self, source: fx.Node, chain: list[fx.Node]) -> IntArray | None:
        shape, result = source.meta.get("shape"), chain[-1].meta["shape"]
        batched = source.meta.get("batched") and chain[-1].meta["batched"]
        if not shape or not batched or len(shape) != len(result) or shape[2:] != result[2:]:
            return None
        if self._axes(source) > 1 or self._axes(chain[-1]) > 1:
            return None
        space = int(np.prod(shape[2:]))
        channels = self._run(chain, torch.arange(shape[1]).reshape(1, -1, *[1] * len(shape[2:])).expand(shape))
        places = self._run(chain, torch.arange(space).reshape(1, 1, *shape[2:]).expand(shape))
        if channels is None or places is None:
            return None
        if any(varies(channels, axis) for axis in range(channels.ndim) if axis != 1):
            return None
        index = channels[0].reshape(result[1], -1)[:, 0].numpy()
        rows = places[0].reshape(result[1], -1)[torch.from_numpy(index >= 0)]
        inner = np.flatnonzero(index >= 0)
        if len(inner) == 0 or (index[inner[0] : inner[-1] + 1] < 0).any():
            return None
        return index if bool((rows == torch.arange(space)).all()) else None

    def _run(self, chain: list[fx.Node], positions: torch.Tensor) -> torch.Tensor | None:
        value: torch.Tensor | None = positions
        for node in chain:
            if op_name(node) in PADS:
                value = torch.nn.functional.pad(value, node.args[1], value=-1)  # type: ignore[arg-type]
            else:
                value = run_move(self.template, node, value)  # type: ignore[arg-type]
            if value is None:
                return None
        return value

    # -- groups ----------------------------------------------------------------------------------------------------

    def _build_groups(self) -> None:
        """Units by signature, in the order of their first producer."""
        signatures = self._signatures()
        origins = self._origins()
        bundles: dict[object, list[int]] = {}
        for unit, (order, _, _) in origins.items():
            key = (order, self.frozen[unit]) if unit in self.frozen else tuple(signatures[unit])
            bundles.setdefault(key, []).append(unit)
        named = sorted((sorted(units, key=lambda unit: origins[unit][:2]) for units in bundles.values()),
                       key=lambda units: origins[units[0]][:2])  # fmt: skip
        seen: dict[str, int] = {}
        self.groups: list[ChannelGroup] = []
        self.refusals: list[Refusal] = []
        self.members: list[list[int]] = []
        self.group_of = np.full(self.count, -1, dtype=np.int64)
        self.index_of = np.full(self.count, -1, dtype=np.int64)
        for units in named:
            layer = origins[units[0]][2]
            seen[layer] = seen.get(layer, 0) + 1
            name = layer if seen[layer] == 1 else f"{layer}#{seen[layer]}"
            reason = self.frozen.get(units[0])
            why = self.units.tied.get(units[0])
            if len(units) == 1 and (why or reason is None):
                reason = "there is only one unit" + (f": {why}" if why else "")
            if reason is not None:
                self.refusals.append(Refusal(name, reason))
                continue
            self.group_of[units] = len(self.groups)
            self.index_of[units] = np.arange(len(units))
            self.groups.append(self._describe(name, units))
            self.members.append(units)

    def _signatures(self) -> dict[int, list[tuple[int, int]]]:
        """For each unit, how many entries it has in each distinct tensor."""
        arrays = [
            self.unit_ids(side) for layer in self.labels.layers.values() for side in (layer.inputs, layer.outputs)
        ]
        arrays += [self.unit_ids(labels) for labels in self.labels.carriers.values()]
        sides = len(arrays)
        arrays += list(self.unit_arrays.values())
        signatures: dict[int, list[tuple[int, int]]] = {}
        seen: set[bytes] = set()
        for index, array in enumerate(arrays):
            key = array.tobytes()
            if index >= sides and key in seen:
                continue
            seen.add(key)
            made = np.unique(array[self.units.made[array]], return_counts=True)
            for unit, count in zip(*(part.tolist() for part in made), strict=True):
                signatures.setdefault(unit, []).append((index, count))
        return signatures

    def _origins(self) -> dict[int, tuple[int, int, str]]:
        """For each unit that a layer makes: execution order of the first such layer, channel there, and its name."""
        origins: dict[int, tuple[int, int, str]] = {}
        for order, (name, layer) in enumerate(self.labels.layers.items()):
            if self.depthwise(name):
                continue
            for channel, unit in enumerate(self.unit_ids(layer.outputs).tolist()):
                origins.setdefault(unit, (order, channel, name))
        return origins

    def _describe(self, name: str, units: list[int]) -> ChannelGroup:
        wanted = np.array(units)
        producers, carriers, consumers = [], [], []
        called = [str(node.target) for node in self.template.graph.nodes if node.op == "call_module"]
        for layer in dict.fromkeys(layer for name in called for layer in self.template.layers_of(name) or (name,)):
            if layer in self.labels.carriers:
                if np.isin(self.unit_ids(self.labels.carriers[layer]), wanted).any():
                    carriers.append(layer)
            elif layer in self.labels.layers:
                sides = self.labels.layers[layer]
                reads = bool(np.isin(self.unit_ids(sides.inputs), wanted).any())
                makes = bool(np.isin(self.unit_ids(sides.outputs), wanted).any())
                if self.depthwise(layer):
                    if reads or makes:
                        carriers.append(layer)
                    continue
                if reads:
                    consumers.append(layer)
                if makes:
                    producers.append(layer)
        return ChannelGroup(name, len(units), tuple(producers), tuple(carriers), tuple(consumers))

    def depthwise(self, name: str) -> bool:
        """Whether a layer is a depthwise convolution."""
        module = self.template.modules.get(name)
        return isinstance(module, Conv) and module.groups == module.in_channels > 1


def _moves(node: fx.Node) -> bool:
    """Whether a node moves the entries of one tensor that came from the input."""
    name = op_name(node)
    return (name in MOVES or name in (*PADS, "contiguous", "clone")) and bool(node.meta.get("fed"))
