"""How values lie in memory: channels in blocks of one vector, and where each logical channel sits in them.

Activations are packed as [N, blocks, H, W, lanes] ("NCHW16c" on AVX-512). Beside the buffer goes a map from the
network's channels to positions in the blocks. So whatever merely moves channels (split, concatenation at block
boundaries, shuffle, index_select, zero-padding of channels) changes the map and moves no data: the weights of the
next convolution are packed in the order in which the channels lie. Positions that no channel is mapped to hold
finite rubbish and are read by no reduction.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]

ZERO = -1
"""Position of a channel that holds nothing but zeros and is not stored."""


@dataclass(frozen=True, eq=False, slots=True)
class Plain:
    """A value stored as torch stores it."""

    expr: Any
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Blocked:
    """A feature map in channel blocks.

    Attributes:
        expr: the buffer, float32 [batch, blocks, height, width, lanes].
        channels: position of each channel, block * lanes + lane, or ZERO. Of any rank: a [2, 8] array is the value
            of logical shape [N, 2, 8, H, W] in the middle of a channel shuffle.
    """

    expr: Any
    channels: IntArray
    batch: int
    blocks: int
    height: int
    width: int
    lanes: int

    @property
    def buffer_shape(self) -> tuple[int, int, int, int, int]:
        """Shape of the buffer."""
        return self.batch, self.blocks, self.height, self.width, self.lanes

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape the network sees."""
        return self.batch, *self.channels.shape, self.height, self.width

    @property
    def in_order(self) -> bool:
        """Whether the channels lie in the network's order, in no more blocks than they need."""
        return is_in_order(self.channels, self.blocks, self.lanes)

    @property
    def stored(self) -> bool:
        """Whether every channel has a place in the buffer."""
        return bool((self.channels >= 0).all())


@dataclass(frozen=True, eq=False, slots=True)
class Features:
    """A matrix of feature vectors: buffer [batch, size] and the position of each feature in its rows."""

    expr: Any
    channels: IntArray
    batch: int
    size: int

    @property
    def shape(self) -> tuple[int, int]:
        """Shape the network sees."""
        return self.batch, len(self.channels)

    @property
    def in_order(self) -> bool:
        """Whether the buffer is the matrix itself."""
        return self.size == len(self.channels) and bool((self.channels == np.arange(self.size)).all())


Value = Plain | Blocked | Features | tuple["Value", ...]


def block_count(channels: int, lanes: int) -> int:
    """Blocks that so many channels need."""
    return -(-channels // lanes)


def is_in_order(channels: IntArray, blocks: int, lanes: int) -> bool:
    """Whether the positions are 0, 1, 2, ... in no more blocks than needed."""
    count = channels.size
    return (
        channels.ndim == 1
        and blocks == block_count(count, lanes)
        and bool((channels == np.arange(count, dtype=np.int64)).all())
    )


def flattened(value: Blocked) -> IntArray:
    """Position of each feature after [N, C, H, W] -> [N, C*H*W], in the row [blocks*H*W*lanes] that the buffer is.

    Raises:
        ValueError: where a channel is not stored.
    """
    if not value.stored:
        raise ValueError("a channel of zeros has no position")
    block, lane = np.divmod(value.channels.reshape(-1), value.lanes)
    pixel = np.arange(value.height * value.width)
    positions = (block[:, None] * pixel.size + pixel[None, :]) * value.lanes + lane[:, None]
    return np.ascontiguousarray(positions.reshape(-1))


@dataclass(frozen=True, slots=True)
class Span:
    """How a reduction walks over an input's channels: `steps` groups of `width` neighbours, group i starting at
    position start + i*width, or, where they lie irregularly (start is None), at the i-th entry of a table."""

    steps: int
    width: int
    start: int | None


def plan_reduction(channels: IntArray, lanes: int) -> tuple[Span, IntArray, IntArray]:
    """The widest span that reads exactly the channels stored.

    Args:
        channels: [C] positions; ZERO entries contribute nothing and are left out.
        lanes: a group never crosses a block of so many positions.

    Returns:
        The span, the channels in the order visited [steps*width], and each group's first position [steps].
    """
    order = np.argsort(channels, kind="stable")
    order = order[channels[order] != ZERO]
    positions = channels[order]
    width = max(
        candidate
        for candidate in (2**power for power in range(lanes.bit_length()))
        if _splits_into_runs(positions, candidate, lanes)
    )
    starts = positions[::width]
    regular = len(starts) > 0 and bool((starts == starts[0] + width * np.arange(len(starts))).all())
    return Span(len(starts), width, int(starts[0]) if regular else None), order, starts


def _splits_into_runs(positions: IntArray, width: int, lanes: int) -> bool:
    if len(positions) % width:
        return False
    runs = positions.reshape(-1, width)
    adjacent = (runs == runs[:, :1] + np.arange(width)).all()
    return bool(adjacent and (runs[:, 0] % lanes + width <= lanes).all())


def pad_axis(array: npt.NDArray[Any], axis: int, multiple: int) -> npt.NDArray[Any]:
    """The array with zeros appended along the axis up to the next multiple."""
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, -array.shape[axis] % multiple)
    return np.pad(array, widths)


def pack_convolution(weight: npt.NDArray[Any], order: IntArray, width: int, lanes: int) -> FloatArray:
    """Weights [O, I, kh, kw] -> [O blocks, steps, kh, kw, width, lanes], input channels in the order of the span."""
    weight = pad_axis(weight[:, order], 0, lanes)
    out, into, rows, columns = weight.shape
    blocked = weight.reshape(out // lanes, lanes, into // width, width, rows, columns)
    return np.ascontiguousarray(blocked.transpose(0, 2, 4, 5, 3, 1), dtype=np.float32)


def pack_dense(
    weight: npt.NDArray[Any], order: IntArray, width: int, lanes: int, blocks: int, stream: int
) -> FloatArray:
    """Weights [O, I] -> [blocks/stream, steps, width, stream, lanes], inputs in the order of the span; outputs beyond
    O are zero."""
    padded = np.zeros((blocks * lanes, len(order)), dtype=np.float32)
    padded[: len(weight)] = weight[:, order]
    split = padded.reshape(blocks // stream, stream, lanes, len(order) // width, width)
    return np.ascontiguousarray(split.transpose(0, 3, 4, 1, 2))


def pack_channels(values: npt.NDArray[Any], channels: IntArray, blocks: int, lanes: int) -> FloatArray:
    """One value a channel [C, ...] -> [blocks, ..., lanes] by the channels' positions; zero where no channel lies."""
    packed = np.zeros((blocks * lanes, *values.shape[1:]), dtype=np.float32)
    stored = channels != ZERO
    packed[channels[stored]] = values[stored]
    return np.ascontiguousarray(np.moveaxis(packed.reshape(blocks, lanes, *values.shape[1:]), 1, -1))
