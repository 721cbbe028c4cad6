"""The arguments of an operator as plain data, those along the channel axis in terms of what channel groups keep."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from search_spaces.channels import ChannelStructure, Gather
from search_spaces.labels import IntArray
from search_spaces.operators import Argument, Entries, TensorInput
from search_spaces.template import PADS, arguments, op_name, source_of
from search_spaces.tensors import constant_value


def read_arguments(
    structure: ChannelStructure, node: fx.Node, inputs: Sequence[fx.Node]
) -> tuple[tuple[str, Argument], ...]:
    """See `search_spaces.graph.Operator.arguments`.

    Args:
        structure: of the node's graph.
        node: of the template.
        inputs: the nodes that stand as the operator's inputs.
    """
    gather = structure.gathers.get(node)
    if gather is not None:
        return _gathered(structure, gather)
    if node.op == "call_function" and not isinstance(node.target, torch._ops.OpOverload):  # operator.getitem
        return (("index", _plain(node.args[1], inputs)),)
    found = {name: _plain(value, inputs) for name, value in arguments(node).items()}
    if op_name(node) == "slice":
        _bound_slice(structure, node, found)
    elif op_name(node) in PADS:
        _bound_pad(structure, node, found)
    elif op_name(node) == "index_select" and not arguments(node)["index"].meta.get("fed"):
        index = constant_value(structure.template, arguments(node)["index"])
        found["index"] = tuple(int(position) for position in index)
    return tuple(found.items())


def _gathered(structure: ChannelStructure, gather: Gather) -> tuple[tuple[str, Argument], ...]:
    sides = {"source": gather.source, "result": gather.chain[-1]}
    places = {name: _places(structure, side) for name, side in sides.items()}
    return (("index", tuple(int(channel) for channel in gather.index)), *places.items())


def _places(structure: ChannelStructure, node: fx.Node) -> Argument:
    """(group, unit) of each channel of a feature map."""
    line = _line(structure, node, 1)
    return tuple((int(structure.group_of[unit]), int(structure.index_of[unit])) for unit in line)


def _entries(structure: ChannelStructure, units: IntArray) -> Entries:
    places = [(int(structure.group_of[unit]), int(structure.index_of[unit])) for unit in units]
    movable = tuple(place for place in places if place[0] >= 0)
    return Entries(len(places) - len(movable), movable)


def _line(structure: ChannelStructure, node: fx.Node, axis: int) -> IntArray:
    """[size] the unit of each entry along an axis that shrinks."""
    units = structure.unit_arrays[node]
    line: IntArray = units.reshape(-1) if units.size == units.shape[axis] else units.take(0, 0).reshape(-1)
    return line


def _bound_slice(structure: ChannelStructure, node: fx.Node, found: dict[str, Argument]) -> None:
    source = source_of(node)
    axis = structure.channel_axis(source)
    start, end = found["start"], found["end"]
    if axis is None or axis != found["dim"] or not isinstance(start, int) or not isinstance(end, int):
        return
    line = _line(structure, source, axis)
    found["start"], found["end"] = _entries(structure, line[:start]), _entries(structure, line[:end])


def _bound_pad(structure: ChannelStructure, node: fx.Node, found: dict[str, Argument]) -> None:
    axis = structure.channel_axis(node)
    amounts = found["pad"]
    if axis is None or not isinstance(amounts, tuple):
        return
    place = 2 * (len(node.meta["shape"]) - 1 - axis)
    if place + 1 >= len(amounts):
        return
    before, after = amounts[place], amounts[place + 1]
    if not isinstance(before, int) or not isinstance(after, int):
        return
    line = _line(structure, node, axis)
    ends = _entries(structure, line[:before]), _entries(structure, line[len(line) - after :])
    found["pad"] = (*amounts[:place], *ends, *amounts[place + 2 :])


def _plain(value: Any, inputs: Sequence[fx.Node]) -> Argument:
    if isinstance(value, fx.Node):
        return TensorInput(inputs.index(value)) if value in inputs else None
    if isinstance(value, list | tuple):
        return tuple(_plain(item, inputs) for item in value)
    if value is None or isinstance(value, int | float | bool | str):
        return value
    return str(value)
