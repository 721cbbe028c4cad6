"""Where each logical channel of a packed value lies in its buffer.

Channels are packed in blocks of one vector. A position is block * lanes + lane, or `ZERO` for a channel that holds
nothing but zeros and is not stored. Whatever merely moves channels (split, concatenation at block boundaries, shuffle,
index_select, zero-padding) makes another map and moves no data: the weights of the next convolution are packed in the
order in which the channels lie. Maps are interned, so that equal ones are one object and what is computed of one is
computed once.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.tvm.kernels.base import Span, block_count

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]

ZERO = -1

_interned: dict[tuple[tuple[int, ...], bytes], "Channels"] = {}


class Channels:
    """A map from channels to positions; compared by identity, made by `Channels.of` and `Channels.in_order`.

    Attributes:
        positions: of any rank: a [2, 8] array is the value of logical shape [N, 2, 8, H, W] in the middle of a shuffle.
        stored: whether every channel has a place in the buffer.
        distinct: whether no two channels share one.
    """

    __slots__ = ("distinct", "positions", "stored")

    def __init__(self, positions: IntArray) -> None:
        positions.setflags(write=False)
        self.positions = positions
        self.stored = bool((positions >= 0).all())
        self.distinct = len(np.unique(positions)) == positions.size

    @staticmethod
    def of(positions: npt.ArrayLike) -> "Channels":
        """The map with these positions."""
        array = np.ascontiguousarray(positions, dtype=np.int64)
        key = (array.shape, array.tobytes())
        if key not in _interned:
            _interned[key] = Channels(array)
        return _interned[key]

    @staticmethod
    def in_order(count: int) -> "Channels":
        """Channel i at position i."""
        return _in_order(count)

    @property
    def count(self) -> int:
        """Number of channels."""
        return int(self.positions.size)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array of positions."""
        return self.positions.shape

    @property
    def flat(self) -> "Channels":
        """The same as one axis."""
        return self if self.positions.ndim == 1 else Channels.of(self.positions.reshape(-1))

    def is_in_order(self, blocks: int, lanes: int) -> bool:
        """Whether channel i lies at position i, in no more blocks than needed."""
        return blocks == block_count(self.count, lanes) and self is _in_order(self.count)

    def used_blocks(self, lanes: int) -> int:
        """Blocks that hold a channel."""
        return len(np.unique(self.positions[self.positions != ZERO] // lanes))


@cache
def _in_order(count: int) -> Channels:
    return Channels.of(np.arange(count))


@cache
def plan_reduction(channels: Channels, lanes: int) -> tuple[Span, IntArray, IntArray]:
    """The widest span that reads exactly the channels stored.

    Args:
        channels: of one axis; those of zeros contribute nothing and are left out.
        lanes: a group never crosses a block of so many positions.

    Returns:
        The span, the channels in the order visited [steps*width], and each group's first position [steps].
    """
    order = np.argsort(channels.positions, kind="stable")
    order = order[channels.positions[order] != ZERO]
    positions = channels.positions[order]
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
    """Weights [O, I, kh, kw] -> [O blocks, kh, kw, steps, width, lanes], input channels in the order of the span."""
    weight = pad_axis(weight[:, order], 0, lanes)
    out, into, rows, columns = weight.shape
    blocked = weight.reshape(out // lanes, lanes, into // width, width, rows, columns)
    return np.ascontiguousarray(blocked.transpose(0, 4, 5, 2, 3, 1), dtype=np.float32)


def pack_dense(
    weight: npt.NDArray[Any], order: IntArray, width: int, lanes: int, blocks: int, stream: int
) -> FloatArray:
    """Weights [O, I] -> [blocks/stream, steps, width, stream, lanes], inputs in the order of the span; outputs beyond
    O are zero."""
    padded = np.zeros((blocks * lanes, len(order)), dtype=np.float32)
    padded[: len(weight)] = weight[:, order]
    split = padded.reshape(blocks // stream, stream, lanes, len(order) // width, width)
    return np.ascontiguousarray(split.transpose(0, 3, 4, 1, 2))


def pack_channels(values: npt.NDArray[Any], channels: Channels, blocks: int, lanes: int) -> FloatArray:
    """One value a channel [C, ...] -> [blocks, ..., lanes] by the channels' positions; zero where no channel lies."""
    positions = channels.positions
    packed = np.zeros((blocks * lanes, *values.shape[1:]), dtype=np.float32)
    packed[positions[positions != ZERO]] = values[positions != ZERO]
    return np.ascontiguousarray(np.moveaxis(packed.reshape(blocks, lanes, *values.shape[1:]), 1, -1))


def joined(parts: Sequence[tuple[Channels, int]], lanes: int) -> tuple[Channels, tuple[tuple[int, ...], ...]]:
    """Channels behind one another in one buffer, their blocks copied whole so that they keep their lanes.

    Args:
        parts: (channels, blocks) of each value, every channel stored.
        lanes: of a block.

    Returns:
        The map of all channels, and of each value the blocks to copy.
    """
    taken, positions, before = [], [], 0
    for channels, _ in parts:
        blocks, rank = np.unique(channels.positions // lanes, return_inverse=True)
        taken.append(tuple(int(block) for block in blocks))
        positions.append((before + rank.reshape(-1)) * lanes + channels.positions.reshape(-1) % lanes)
        before += len(blocks)
    return Channels.of(np.concatenate(positions)), tuple(taken)
