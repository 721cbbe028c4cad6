"""How the values of a network lie in memory.

A feature map is packed as [N, blocks, H, W, lanes] ("NCHW16c" on AVX-512), and stays so from the first convolution to
the last: what a network sees of it is a view. A view names, for each logical dimension, the axes of the buffer that it
runs over, so permuting, splitting and merging dimensions (channels last, tokens, heads of attention, a channel shuffle)
costs nothing. Buffers are told apart by identity; equality of values is that of their layouts alone.
"""

from dataclasses import dataclass, field, replace
from math import prod
from typing import Literal

import numpy as np
import numpy.typing as npt

from backends.tvm.lowering.channels import Channels, FloatArray, IntArray

Axis = Literal["n", "c", "h", "w"]
Dims = tuple[tuple[Axis, ...], ...]

MAP: Dims = (("n",), ("c",), ("h",), ("w",))
"""The view of a feature map [N, C, H, W]."""


@dataclass(frozen=True, eq=False, slots=True)
class Buffer:
    """Memory that a kernel writes or the network is given; equal to itself only."""

    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class Plain:
    """A value stored as torch stores it."""

    buffer: Buffer = field(compare=False)
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of features: a buffer [batch, size] and the position of each feature in its rows; `grid` as of `Packed`."""

    buffer: Buffer = field(compare=False)
    channels: Channels
    batch: int
    size: int
    grid: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape that the network sees."""
        return self.batch, *self.channels.shape

    @property
    def in_order(self) -> bool:
        """Whether the buffer is the matrix itself."""
        return self.size == self.channels.count and self.channels.flat is Channels.in_order(self.size)


@dataclass(frozen=True, slots=True)
class Packed:
    """A view of channel blocks.

    Attributes:
        buffer: float32 or uint8 [batch, blocks, height, width, lanes].
        channels: position of each channel; it has an axis for each "c" in `dims`, in their order.
        dims: for each logical dimension the axes that it runs over, outer first; axes of size 1 may be missing.
        grid: the layer in whose quantiser's grid the buffer holds codes; None where it holds float32.
    """

    buffer: Buffer = field(compare=False)
    channels: Channels
    batch: int
    blocks: int
    height: int
    width: int
    lanes: int
    dims: Dims = MAP
    grid: str | None = None

    @property
    def buffer_shape(self) -> tuple[int, int, int, int, int]:
        """Shape of the buffer."""
        return self.batch, self.blocks, self.height, self.width, self.lanes

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape that the network sees."""
        return tuple(prod(size for _, size in dim) for dim in self.sizes())

    @property
    def in_order(self) -> bool:
        """Whether channel i lies at position i, in no more blocks than needed."""
        return self.channels.flat.is_in_order(self.blocks, self.lanes)

    def sizes(self) -> list[list[tuple[Axis, int]]]:
        """For each dimension its axes and their sizes."""
        channels = iter(self.channels.shape)
        fixed = {"n": self.batch, "h": self.height, "w": self.width}
        return [[(axis, next(channels) if axis == "c" else fixed[axis]) for axis in dim] for dim in self.dims]

    def over(self, dimension: int) -> tuple[Axis, ...]:
        """The axes of more than one entry that a dimension runs over."""
        return tuple(axis for axis, size in self.sizes()[dimension] if size > 1)

    def channel_dimension(self) -> int | None:
        """The one dimension that runs over all channels and nothing else; None where there is no such."""
        places = [
            place
            for place, dim in enumerate(self.dims)
            if "c" in dim and (self.channels.count > 1 or dim == ("c",))
        ]  # fmt: skip
        if len(places) != 1 or any(axis != "c" for axis in self.over(places[0])):
            return None
        return places[0]

    def with_dims(self, dims: Dims, channels: Channels | None = None) -> "Packed":
        """Another view of the same buffer."""
        return replace(self, dims=dims, channels=channels or self.channels)


@dataclass(frozen=True, slots=True)
class Cropped:
    """Some rows and columns of a feature map, not yet moved: what follows may move the channels with them.

    Attributes:
        value: the whole map [N, C, H, W].
        size: rows and columns.
        offset: row and column of the first.
        stride: rows and columns between two.
    """

    value: Packed
    size: tuple[int, int]
    offset: tuple[int, int]
    stride: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape that the network sees."""
        return *self.value.shape[:2], *self.size


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant, the same for every image, that waits for what reads it.

    Attributes:
        name: of the operator that it is.
        shape: that the network sees, the batch dimension included.
    """

    name: str
    shape: tuple[int, ...]


Value = Plain | Matrix | Packed | Cropped | Constant | tuple["Value", ...]


# -- views -----------------------------------------------------------------------------------------------------------


def reshaped(value: Packed, shape: tuple[int, ...]) -> Packed | None:
    """The view of another shape, or None where that would move data."""
    axes = [pair for dim in value.sizes() for pair in dim if pair[1] != 1]
    dims: list[tuple[Axis, ...]] = []
    channels: list[int] = []
    for extent in shape:
        dim: list[Axis] = []
        need = extent
        while need > 1:
            if not axes:
                return None
            axis, size = axes.pop(0)
            if need % size:
                if axis != "c" or size % need:
                    return None
                axes.insert(0, (axis, size // need))
                size = need
            need //= size
            if axis == "c" and dim and dim[-1] == "c":
                channels[-1] *= size
                continue
            dim.append(axis)
            if axis == "c":
                channels.append(size)
        dims.append(tuple(dim))
    if axes:
        return None
    if not channels:  # the one channel that there is must stay in sight
        place = next((place for place, dim in enumerate(dims) if not dim), None)
        if place is None:
            return None
        dims[place] = ("c",)
        channels = [1]
    return value.with_dims(tuple(dims), Channels.of(value.channels.positions.reshape(channels)))


def permuted(value: Packed, axes: list[int]) -> Packed:
    """The view whose dimension i is dimension axes[i] of the value."""
    before: list[list[int]] = []
    count = 0
    for dim in value.dims:
        before.append([count + offset for offset in range(dim.count("c"))])
        count += dim.count("c")
    order = [axis for place in axes for axis in before[place]]
    positions = value.channels.positions.transpose(order)
    return value.with_dims(tuple(value.dims[place] for place in axes), Channels.of(positions))


def chosen(value: Packed, dimension: int, index: IntArray) -> Packed | None:
    """Some entries along a dimension that runs over one axis of channels; None along any other."""
    if value.dims[dimension] != ("c",):
        return None
    axis = sum(dim.count("c") for dim in value.dims[:dimension])
    return value.with_dims(value.dims, Channels.of(value.channels.positions.take(index, axis)))


def without(value: Packed, dimension: int) -> Packed:
    """The view without a dimension of size 1; the last channel stays in sight."""
    dim = value.dims[dimension]
    dims = (*value.dims[:dimension], *value.dims[dimension + 1 :])
    positions = value.channels.positions
    if "c" in dim and positions.ndim > 1:
        axis = sum(other.count("c") for other in value.dims[:dimension])
        positions = positions.reshape(positions.shape[:axis] + positions.shape[axis + dim.count("c") :])
    elif "c" in dim:
        raise ValueError("the only channel cannot be hidden")
    return value.with_dims(dims, Channels.of(positions))


def feature_positions(value: Packed, dimension: int) -> Channels:
    """Positions, in one image's row [blocks * H * W * lanes], of the entries along a dimension.

    Raises:
        ValueError: where a channel is not stored, or not all of the image lies along the dimension.
    """
    sizes = value.sizes()[dimension]
    if (
        not value.channels.stored
        or prod(size for _, size in sizes) != value.channels.count * value.height * value.width
    ):
        raise ValueError("the dimension holds something else than one whole image")
    index = dict.fromkeys(("h", "w"), np.zeros((), dtype=np.int64))
    place = np.unravel_index(np.arange(prod(size for _, size in sizes)), [size for _, size in sizes] or [1])
    channel = [line for line, (axis, _) in zip(place, sizes, strict=False) if axis == "c"]
    for line, (axis, _) in zip(place, sizes, strict=False):
        if axis in index:
            index[axis] = line
    positions = value.channels.positions[tuple(channel)] if channel else value.channels.positions.reshape(-1)[:1]
    block, lane = np.divmod(positions, value.lanes)
    return Channels.of(((block * value.height + index["h"]) * value.width + index["w"]) * value.lanes + lane)


def pack_like(array: npt.NDArray[np.float64], value: Packed) -> FloatArray:
    """A constant of the value's logical shape (or one that broadcasts to it, the same for every image) in its layout.

    Returns:
        [1, blocks, H, W, lanes], zero where no channel lies.
    """
    packed = np.zeros((1, value.blocks, value.height, value.width, value.lanes), dtype=np.float32)
    shape = tuple(1 if dim == ("n",) else extent for dim, extent in zip(value.dims, value.shape, strict=True))
    whole = np.broadcast_to(array, shape)
    sizes = [(axis, 1 if axis == "n" else size) for dim in value.sizes() for axis, size in dim]
    split = whole.reshape([size for _, size in sizes])
    names = [axis for axis, _ in sizes]
    order = [place for wanted in ("c", "h", "w", "n") for place, axis in enumerate(names) if axis == wanted]
    moved = split.transpose(order).reshape(value.channels.count, value.height, value.width)
    positions = value.channels.positions.reshape(-1)
    stored = positions >= 0
    block, lane = np.divmod(positions[stored], value.lanes)
    packed[0, block, :, :, lane] = moved[stored]
    return packed
