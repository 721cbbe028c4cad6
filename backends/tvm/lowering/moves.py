"""Operators that only rearrange: on packed values most of them change the view and move nothing."""

from dataclasses import replace
from math import prod

import numpy as np
import numpy.typing as npt

from backends.fusion import FusedOperator, permutation
from backends.tvm.kernels.movement import Concat
from backends.tvm.lowering.channels import ZERO, Channels, IntArray, joined
from backends.tvm.lowering.plan import Planner, Promise, Rule
from backends.tvm.lowering.tail import Tail, packed_vectors, read_tail
from backends.tvm.lowering.tokens import concatenate_tokens
from backends.tvm.lowering.values import (
    Buffer,
    Constant,
    Cropped,
    Matrix,
    Packed,
    Plain,
    Value,
    chosen,
    permuted,
    reshaped,
    without,
)
from search_spaces.operators import TensorInput

_SLACK = 1.5  # times the blocks needed; beyond it a value is compacted before its blocks are copied


def lower_identity(planner: Planner, fused: FusedOperator) -> Value | None:
    """What changes nothing in evaluation."""
    return planner.source(fused)


def lower_reshape(planner: Planner, fused: FusedOperator) -> Value | None:
    """Another shape: splitting and merging of dimensions."""
    value, shape = planner.source(fused), planner.shape(fused.head)
    if isinstance(value, tuple):
        return None
    if isinstance(value, Packed):
        view = reshaped(value, shape)
        if view is not None:
            return view
    if isinstance(value, Matrix) and value.shape[0] == shape[0] and prod(value.shape[1:]) == prod(shape[1:]):
        if len(shape) == 2:
            return replace(value, channels=value.channels.flat)
        packed = planner.packed(replace(value, channels=value.channels.flat))
        view = None if packed is None else reshaped(packed, shape)
        if view is not None:
            return view
    plain = planner.plain(value)
    return Plain(planner.reshape(plain.buffer, shape), shape)


def lower_permute(planner: Planner, fused: FusedOperator) -> Value | None:
    """A permutation of dimensions."""
    value = planner.packed(planner.source(fused))
    return None if value is None else permuted(value, permutation(fused.head, len(value.dims)))


def lower_expand(planner: Planner, fused: FusedOperator) -> Value | None:
    """An expansion that expands nothing, or a constant over the batch."""
    source, shape = planner.operator(fused.head.inputs[0]), planner.shape(fused.head)
    if source.constant:
        own = planner.shape(source)
        return Constant(source.name, shape) if own[:1] == (1,) and own[1:] == shape[1:] else None
    value = planner.source(fused)
    return value if not isinstance(value, tuple) and value.shape == planner.shape(fused.head) else None


def lower_select(planner: Planner, fused: FusedOperator) -> Value | None:
    """One entry along a dimension."""
    value = planner.packed(planner.source(fused))
    if value is None:
        return None
    place = planner.size(fused.head.argument("dim")) % len(value.dims)
    index = planner.size(fused.head.argument("index"))
    return _selected(planner, value, place, index % value.shape[place])


def _selected(planner: Planner, value: Packed, place: int, index: int) -> Packed | None:
    over = value.over(place)
    if over in (("h",), ("w",)):
        offset = (index, 0) if over == ("h",) else (0, index)
        size = (1, value.width) if over == ("h",) else (value.height, 1)
        return without(planner.gathered(value, size, offset), place)
    if value.shape[place] == 1 and value.dims[place] != ("c",):
        return without(value, place)
    view = chosen(value, place, np.array([index]))
    return None if view is None or view.channels.positions.ndim == 1 else without(view, place)


def lower_unbind(planner: Planner, fused: FusedOperator) -> Value | None:
    """Every entry along a dimension."""
    value = planner.packed(planner.source(fused))
    if value is None:
        return None
    place = planner.size(fused.head.argument("dim")) % len(value.dims)
    if value.dims[place] != ("c",):
        return None
    parts = [_selected(planner, value, place, index) for index in range(value.shape[place])]
    return None if any(part is None for part in parts) else tuple(part for part in parts if part is not None)


def lower_getitem(planner: Planner, fused: FusedOperator) -> Value | None:
    """One of several values."""
    value = planner.source(fused)
    return value[planner.size(fused.head.argument("index"))] if isinstance(value, tuple) else None


def lower_slice(planner: Planner, fused: FusedOperator) -> Value | None:
    """Every so manyeth entry along a dimension between two bounds."""
    value, operator = planner.value(fused.head.inputs[0]), fused.head
    if not isinstance(value, Matrix | Cropped):
        value = planner.packed(value) or value
    start, end = (planner.size(operator.argument(name)) for name in ("start", "end"))
    step, place = planner.size(operator.argument("step")), planner.size(operator.argument("dim"))
    if isinstance(value, Cropped):
        if place % 4 > 1:
            axis = place % 4 - 2
            return _cropped(value, axis, start, step, np.arange(value.size[axis])[start:end:step])
        value = planner.moved(value)
    if isinstance(value, Matrix):
        if place % 2 != 1 or value.channels.positions.ndim != 1:
            return None
        return replace(value, channels=Channels.of(value.channels.positions[start:end:step]))
    if not isinstance(value, Packed):
        return None
    place %= len(value.dims)
    over, index = value.over(place), np.arange(value.shape[place])[start:end:step]
    if over in (("h",), ("w",)):
        if value.channel_dimension() == 1 and len(value.dims) == 4:
            return _cropped(Cropped(value, (value.height, value.width), (0, 0), (1, 1)), place - 2, start, step, index)
        if over == ("h",):
            return planner.gathered(value, (len(index), value.width), (start, 0), (step, 1))
        return planner.gathered(value, (value.height, len(index)), (0, start), (1, step))
    return chosen(value, place, index)


def _cropped(crop: Cropped, axis: int, start: int, step: int, index: IntArray) -> Cropped:
    """The crop with fewer rows (axis 0) or columns (axis 1)."""
    size, offset, stride = list(crop.size), list(crop.offset), list(crop.stride)
    offset[axis] += start * stride[axis]
    stride[axis] *= step
    size[axis] = len(index)
    return replace(crop, size=(size[0], size[1]), offset=(offset[0], offset[1]), stride=(stride[0], stride[1]))


def lower_channel_gather(planner: Planner, fused: FusedOperator) -> Value | None:
    """Channels in another order (a shuffle, a split, index_select), those of zeros among them. Of each channel group
    the first units are taken to be those that stay; how many do is what counts."""
    arguments = dict(fused.head.arguments)
    if "source" not in arguments:
        return _index_select(planner, fused)
    value = planner.feature_map(planner.source(fused))
    stays = {name: _alive(planner, arguments[name]) for name in ("source", "result")}
    wanted = np.asarray(arguments["index"], dtype=np.int64)[stays["result"]]
    if value is None:
        return None
    place = np.cumsum(stays["source"]) - 1
    positions = value.channels.positions[place[wanted]]
    return replace(value, channels=Channels.of(np.where(wanted >= 0, positions, ZERO)))


def _index_select(planner: Planner, fused: FusedOperator) -> Value | None:
    """Chosen entries along a dimension of channels none of which can be pruned."""
    value, index = planner.packed(planner.source(fused)), fused.head.argument("index")
    if value is None or not isinstance(index, tuple):
        return None
    return chosen(value, planner.size(fused.head.argument("dim")) % len(value.dims), np.asarray(index, dtype=np.int64))


def _alive(planner: Planner, places: object) -> npt.NDArray[np.bool_]:
    table = np.asarray(places, dtype=np.int64).reshape(-1, 2)
    kept = np.append(np.asarray(planner.kept, dtype=np.int64), 0)
    return (table[:, 0] < 0) | (table[:, 1] < kept[table[:, 0]])


def lower_pad(planner: Planner, fused: FusedOperator) -> Value | None:
    """A constant border; channels of zeros cost nothing."""
    operator = fused.head
    source = planner.value(operator.inputs[0])
    value = source.value if isinstance(source, Cropped) else planner.feature_map(source)
    amounts = operator.argument("pad")
    fill = operator.argument("value")
    mode = operator.argument("mode")
    if value is None or not isinstance(amounts, tuple) or mode not in (None, "constant"):
        return None
    numbers = [planner.size(amount) for amount in amounts] + [0] * (8 - len(amounts))
    left, right, top, bottom, before, after, batch0, batch1 = numbers
    level = float(fill) if isinstance(fill, int | float) else 0.0
    if batch0 or batch1 or min(numbers) < 0 or (level and (before or after)):
        return None
    if isinstance(source, Cropped) and (top or bottom or left or right):
        value = planner.feature_map(source) or value
    if top or bottom or left or right:
        size = value.height + top + bottom, value.width + left + right
        value = planner.gathered(value, size, (-top, -left), fill=level)
    positions = np.pad(value.channels.positions, (before, after), constant_values=ZERO)
    padded = replace(value, channels=Channels.of(positions))
    if isinstance(source, Cropped) and not (top or bottom or left or right):
        return replace(source, value=padded)
    return padded


def lower_concat(planner: Planner, fused: FusedOperator) -> Value | None:
    """Values behind one another, along their channels or as tokens."""
    values: list[Value] = []
    tensors = fused.head.argument("tensors")
    given = tensors if isinstance(tensors, tuple) else ()  # one value may stand in it more than once
    names = [fused.head.inputs[item.index] for item in given if isinstance(item, TensorInput)]
    for name in names:
        operator = planner.operator(name)
        values.append(Constant(name, planner.shape(operator)) if operator.constant else planner.value(name))
    rank = len(planner.shape(fused.head))
    place = fused.head.argument("dim")
    tail = read_tail(planner, fused)
    if rank == 3 and isinstance(place, int) and place % rank == 1 and not fused.tail:
        return concatenate_tokens(planner, values, 1)
    if tail is None or not isinstance(place, int) or place % rank != 1 or rank != 4:
        return None
    parts = [planner.feature_map(value) for value in values]
    found = [part for part in parts if part is not None]
    return _concatenate(planner, found, tail) if len(found) == len(parts) else None


def _concatenate(planner: Planner, parts: list[Packed], tail: Tail) -> Packed:
    """The feature maps' channels in one buffer, and what follows. Their blocks are copied whole, so channels keep
    their lanes."""
    affine = bool(tail.maps)
    parts = [_compact(planner, part, affine) for part in parts]
    channels, taken = joined([(part.channels, part.blocks) for part in parts], parts[0].lanes)
    kernel = Concat(tuple(part.buffer_shape for part in parts), taken, affine, tail.epilogue.activation)
    operands: list[Buffer | Promise] = [part.buffer for part in parts]
    if affine:
        operands += packed_vectors(tail.affine(channels.count), channels, kernel.output_shape[1], parts[0].lanes)
    return planner.packed_by(kernel, channels, *operands)


def _compact(planner: Planner, part: Packed, distinct: bool) -> Packed:
    """The part with its channels in few blocks, and where asked for no two at one place."""
    needed = -(-part.channels.count // part.lanes)
    sound = part.channels.stored and (part.channels.distinct or not distinct)
    if sound and part.channels.used_blocks(part.lanes) <= _SLACK * needed:
        return part
    return planner.gathered(part)


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("dropout", "feature_dropout", "alpha_dropout", "contiguous", "clone", "detach", "alias", "to"), lower_identity
    ),
    **dict.fromkeys(
        ("reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view", "view_as"), lower_reshape
    ),
    **dict.fromkeys(("permute", "transpose"), lower_permute),
    "cat": lower_concat,
    "channel_gather": lower_channel_gather,
    "expand": lower_expand,
    "getitem": lower_getitem,
    "pad": lower_pad,
    "select": lower_select,
    "slice": lower_slice,
    "unbind": lower_unbind,
}
