"""Operators that only rearrange: on packed values most of them change the map of channels and move nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from backends.tvm.layout import ZERO, Blocked, Features, Plain, Value, block_count
from backends.tvm.lower import Lowering
from backends.tvm.movement import Concat
from backends.tvm.reading import ints, operator_name, scalar, shape_of

_SLACK = 1.5  # times the blocks needed; beyond it a value is compacted before its blocks are copied


def lower_reshape(lowering: Lowering, binding: Any) -> Value | None:
    """Splitting or merging of channel axes, flattening to features; anything else is done on the plain layout."""
    value, shape = lowering.value(binding.value.args[0]), shape_of(binding.var)
    if isinstance(value, tuple) or value.shape == shape:
        return None if isinstance(value, tuple) else value
    if isinstance(value, Blocked):
        batch, *middle = value.shape[:-2]
        size = value.shape[-2:]
        if len(shape) > 3 and shape[0] == batch and shape[-2:] == size and np.prod(shape[1:-2]) == np.prod(middle):
            return replace(value, channels=value.channels.reshape(shape[1:-2]))
        if len(shape) == 2 and shape[0] == batch:
            return lowering.flatten(value)
    if isinstance(value, Features) and shape == (*value.shape, 1, 1) and value.size % lowering.cpu.lanes == 0:
        lanes = lowering.cpu.lanes
        buffer_shape = (value.batch, value.size // lanes, 1, 1, lanes)
        return Blocked(lowering.reshape(value.expr, buffer_shape), value.channels, *buffer_shape)
    return Plain(lowering.reshape(lowering.plain(value), shape), shape)


def lower_permute(lowering: Lowering, binding: Any) -> Value | None:
    """A permutation of channel axes, as in a channel shuffle."""
    value = lowering.value(binding.value.args[0])
    if not isinstance(value, Blocked) or binding.value.attrs.axes is None:
        return None
    axes, last = ints(binding.value.attrs.axes), len(value.shape) - 1
    if axes[0] != 0 or axes[-2:] != (last - 1, last):
        return None
    return replace(value, channels=value.channels.transpose([axis - 1 for axis in axes[1:-2]]))


def lower_split(lowering: Lowering, binding: Any) -> Value | None:
    """Channels in several parts."""
    value, attrs = lowering.value(binding.value.args[0]), binding.value.attrs
    axis = _channel_axis(value, int(attrs.axis))
    if not isinstance(value, Blocked | Features) or axis is None:
        return None
    sections = attrs.indices_or_sections
    try:
        where: int | list[int] = [int(index) for index in sections]
    except TypeError:
        where = int(sections)
    return tuple(replace(value, channels=part) for part in np.array_split(value.channels, where, axis))


def lower_take(lowering: Lowering, binding: Any) -> Value | None:
    """Chosen channels (torch.index_select with constant indices)."""
    value, indices = lowering.value(binding.value.args[0]), lowering.constant(binding.value.args[1])
    if not isinstance(value, Blocked | Features) or indices is None or indices.ndim != 1:
        return None
    axis = binding.value.attrs.axis
    if axis is None or (axis := _channel_axis(value, int(axis))) is None:
        return None
    return replace(value, channels=value.channels.take(indices.astype(np.int64), axis))


@dataclass(slots=True)
class _Picked:
    """Channels, rows and columns picked out of a value by slices and pads, before anything is moved."""

    value: Blocked
    offset: list[int]
    stride: list[int]
    size: list[int]

    @classmethod
    def all_of(cls, value: Blocked) -> "_Picked":
        return cls(value, [0, 0], [1, 1], [value.height, value.width])

    @property
    def whole(self) -> bool:
        """Whether every row and column stands where it stood."""
        return self.offset == [0, 0] and self.stride == [1, 1] and self.size == [self.value.height, self.value.width]

    def slice(self, call: Any) -> bool:
        """Whether a strided_slice could be taken in."""
        axes, begins, ends, *steps = ([int(scalar(field)) for field in argument.fields] for argument in call.args[1:])
        rank, channels = len(self.value.shape), self.value.channels
        offset, stride, size = self.offset.copy(), self.stride.copy(), self.size.copy()
        for axis, begin, end, step in zip(axes, begins, ends, steps[0] if steps else [1] * len(axes), strict=True):
            pixel = axis % rank - rank + 2
            extent = size[pixel] if pixel >= 0 else self.value.shape[axis]
            chosen = range(extent)[begin:end:step]
            if step < 1 or not chosen or (axis % rank == 0 and len(chosen) < extent):
                return False
            if pixel >= 0:
                offset[pixel] += chosen.start * stride[pixel]
                stride[pixel] *= step
                size[pixel] = len(chosen)
            elif axis % rank > 0:
                channels = channels.take(np.asarray(chosen), axis % rank - 1)
        self.offset, self.stride, self.size = offset, stride, size
        self.value = replace(self.value, channels=channels)
        return True

    def pad_channels(self, call: Any) -> bool:
        """Whether a pad of channels with zeros could be taken in."""
        batch0, batch1, before, after, *border = ints(call.attrs.pad_width)
        if batch0 or batch1 or any(border) or min(before, after) < 0:
            return False
        if str(call.attrs.pad_mode) != "constant" or float(call.attrs.pad_value):
            return False
        channels = np.pad(self.value.channels, (before, after), constant_values=ZERO)
        self.value = replace(self.value, channels=channels)
        return True

    def moved(self, lowering: Lowering) -> Blocked:
        """The value, gathered where a map of channels cannot say it."""
        if self.whole:
            return self.value
        (rows, columns), (top, left), (down, right) = self.size, self.offset, self.stride
        return lowering.gathered(self.value, (rows, columns), (top, left), (down, right))


def lower_strided_slice(lowering: Lowering, binding: Any) -> Value | None:
    """Every so manyeth channel, row or column; with the slices and the pad of channels behind it, which together are
    the shortcut of a ResNet of option A, it is one gather, or none where only channels are picked."""
    value = lowering.value(binding.value.args[0])
    if not isinstance(value, Blocked):
        return None
    picked = _Picked.all_of(value)
    if not picked.slice(binding.value):
        return None
    if not picked.whole:
        lowering.fuse_while(binding, lambda call: _take_in(picked, call))
    return picked.moved(lowering)


def _take_in(picked: _Picked, call: Any) -> bool:
    name = operator_name(call)
    if name == "relax.strided_slice":
        return picked.slice(call)
    return name == "relax.nn.pad" and picked.value.channels.ndim == 1 and picked.pad_channels(call)


def lower_pad(lowering: Lowering, binding: Any) -> Value | None:
    """A constant border; channels of zeros cost nothing."""
    value, call = lowering.value(binding.value.args[0]), binding.value
    if not isinstance(value, Blocked) or value.channels.ndim != 1 or len(call.attrs.pad_width) != 8:
        return None
    batch0, batch1, before, after, top, bottom, left, right = ints(call.attrs.pad_width)
    fill = float(call.attrs.pad_value)
    if batch0 or batch1 or (fill and (before or after)) or min(ints(call.attrs.pad_width)) < 0:
        return None
    if str(call.attrs.pad_mode) != "constant":
        return None
    if top or bottom or left or right:
        size = value.height + top + bottom, value.width + left + right
        value = lowering.gathered(value, size, (-top, -left), fill=fill)
    return replace(value, channels=np.pad(value.channels, (before, after), constant_values=ZERO))


def lower_concat(lowering: Lowering, binding: Any) -> Value | None:
    """Feature maps behind one another along the channels."""
    call = binding.value
    values = [lowering.value(field) for field in call.args[0].fields]
    if int(call.attrs.axis) % len(shape_of(binding.var)) != 1 or not any(isinstance(v, Blocked) for v in values):
        return None
    parts = [part for value in values if (part := lowering.blocked(value)) is not None]
    if len(parts) < len(values) or any(part.channels.ndim != 1 for part in parts):
        return None
    return concatenate(lowering, parts)


def concatenate(lowering: Lowering, parts: Sequence[Blocked]) -> Blocked:
    """The parts' channels in one buffer. Their blocks are copied whole, so channels keep their lanes."""
    parts = [_compact(lowering, part) for part in parts]
    taken, channels, before = [], [], 0
    for part in parts:
        blocks, rank = np.unique(part.channels // part.lanes, return_inverse=True)
        taken.append(tuple(int(block) for block in blocks))
        channels.append((before + rank) * part.lanes + part.channels % part.lanes)
        before += len(blocks)
    kernel = Concat(tuple(part.buffer_shape for part in parts), tuple(taken))
    return lowering.blocks_of(kernel, np.concatenate(channels), *(part.expr for part in parts))


def _compact(lowering: Lowering, part: Blocked) -> Blocked:
    used = len(np.unique(part.channels // part.lanes))
    if part.stored and used <= _SLACK * block_count(part.channels.size, part.lanes):
        return part
    return lowering.gathered(part)


def _channel_axis(value: Value, axis: int) -> int | None:
    """The axis of the map of channels that an axis of the value is, or None."""
    if not isinstance(value, Blocked | Features):
        return None
    position = axis % len(value.shape) - 1
    return position if 0 <= position < value.channels.ndim else None
