"""The least traffic between a chip and its memory that tiles of a layer allow, given the chip's buffers.

A layer is a product of [P, K] by [K, N] (see `workloads`). Of three orders of its tiles each keeps one operand still
(Chen et al., "Eyeriss", ISCA 2016, name them output-, weight- and input-stationary); with nP, nK, nN tiles along each
axis the chip reads and writes

    outputs still    W * nP + A * nN + O
    weights still    W + A * nN + O * (2 nK - 1)
    inputs still     A + W * nP + O * (2 nK - 1)

A counts the rows that neighbouring tiles share. The numbers of tiles along K and N are tried (`COUNTS`), that along P
follows: the fewest whose tiles fit. Fewer bits, fewer channels or a larger buffer never raise the least traffic, since
every tiling that fitted still fits and moves no more.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.accelerators.workloads import FloatArray, IntArray, Workloads

COUNTS = tuple(sorted({1 << power for power in range(18)} | {3 << power for power in range(16)}))
"""Numbers of tiles along an axis."""


@dataclass(frozen=True)
class Buffers:
    """Bits on the chip for each operand; equal objects of one shared buffer are told by `shared`.

    Attributes:
        weights, inputs, outputs: bits for a tile of each; where `shared` is given, bounds beside it.
        shared: bits for the tiles of all three together.
    """

    weights: float = np.inf
    inputs: float = np.inf
    outputs: float = np.inf
    shared: float = np.inf


@dataclass(frozen=True)
class Offchip:
    """Bits between chip and memory in a pass of the batch, arrays [N].

    Attributes:
        weights, inputs: read.
        partial_sums: read and written again: half of it each.
        outputs: written at last.
        fits: whether any tile fits.
    """

    weights: FloatArray
    inputs: FloatArray
    partial_sums: FloatArray
    outputs: FloatArray
    fits: npt.NDArray[np.bool_]

    @property
    def total(self) -> FloatArray:
        """All of it."""
        return self.weights + self.inputs + self.partial_sums + self.outputs

    @property
    def read(self) -> FloatArray:
        """Bits that the chip reads."""
        return self.weights + self.inputs + self.partial_sums / 2

    @property
    def written(self) -> FloatArray:
        """Bits that the chip writes."""
        return self.outputs + self.partial_sums / 2


@dataclass(frozen=True)
class Operands:
    """Bits of a number of each operand, arrays [N] or numbers.

    Attributes:
        weight, activation: as read from memory; of stored zeros and an index their mean.
        output: as written to memory.
        accumulator: of a partial sum, on the chip and in memory.
    """

    weight: npt.ArrayLike
    activation: npt.ArrayLike
    output: npt.ArrayLike
    accumulator: npt.ArrayLike = 32


def least_traffic(works: Workloads, buffers: Buffers, operands: Operands) -> Offchip:
    """The least traffic, each row for itself.

    Weights that fit the chip as a whole stay there over the steps of a recurrent layer; else each step reads them anew.
    """
    tiles = _Tiles(works, buffers, operands)
    best: Offchip | None = None
    for found in tiles.tilings():
        best = found if best is None else _less(best, found)
    if best is None:  # there are always some
        raise AssertionError("no tiling")
    return best


class _Tiles:
    """Tilings of each layer. Groups run one after the other, each with tiles of its own."""

    def __init__(self, works: Workloads, buffers: Buffers, operands: Operands) -> None:
        self._works, self._buffers = works, buffers
        self._weight, self._activation, self._output, self._accumulator = (
            np.broadcast_to(np.asarray(bits, dtype=np.float64), (len(works),))
            for bits in (operands.weight, operands.activation, operands.output, operands.accumulator)
        )
        self._span_h = (works.kernel_height - 1) * works.dilation_height + 1
        self._span_w = (works.kernel_width - 1) * works.dilation_width + 1
        self._read_w = np.minimum(works.in_width, (works.out_width - 1) * works.stride_width + self._span_w)

    def tilings(self) -> Iterator[Offchip]:
        """All three orders, every number of tiles."""
        works = self._works
        one = np.ones_like(works.batch)
        for count in COUNTS:
            if count <= int(works.out_channels.max(initial=1)) or count == 1:
                yield self._outputs_still(_part(works.out_channels, count), _tiles(works.out_channels, count), one)
            if count <= int(works.in_channels.max(initial=1)) or count == 1:
                channels, times = _part(works.in_channels, count), _tiles(works.in_channels, count)
                yield self._weights_still(channels, times)
                yield self._inputs_still(channels, times)

    def _outputs_still(self, columns: IntArray, n_columns: IntArray, channels: IntArray) -> Offchip:
        n_rows, fits = self._fewest_rows(columns, channels)
        return self._traffic(n_rows, n_columns, np.ones_like(n_rows), fits)

    def _weights_still(self, channels: IntArray, n_depth: IntArray) -> Offchip:
        """As many columns as fit beside one row of pixels; rows pass by, so that weights are read once."""
        works = self._works
        inputs, outputs = self._inputs_of(np.ones_like(channels), channels), np.ones_like(channels)
        column = channels * works.kernel * self._weight  # bits of the weights of one column
        accumulators = outputs * self._accumulator
        buffers = self._buffers
        most = np.minimum(buffers.weights / column, buffers.outputs / accumulators)
        most = np.floor(np.minimum(most, (buffers.shared - inputs) / (column + accumulators)))
        fits = (most >= 1) & (inputs <= buffers.inputs)
        n_columns = np.ceil(works.out_channels / np.maximum(np.minimum(most, works.out_channels), 1))
        return self._traffic(np.ones_like(n_columns), n_columns, n_depth, fits)

    def _inputs_still(self, channels: IntArray, n_depth: IntArray) -> Offchip:
        n_rows, fits = self._fewest_rows(np.ones_like(channels), channels)
        return self._traffic(n_rows, np.ones_like(n_rows), n_depth, fits)

    def _fewest_rows(self, columns: IntArray, channels: IntArray) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """The fewest tiles along P for tiles of so many channels in and out: whole rows of pixels, where one row fits,
        else single pixels."""
        works, buffers = self._works, self._buffers
        weights = columns * channels * works.kernel * self._weight
        fits = weights <= buffers.weights

        def most(first: FloatArray, more: FloatArray, outputs: FloatArray) -> FloatArray:
            """Units along P, where the first reads `first` bits, each further one `more`, and each sums `outputs`."""
            inputs = np.floor((buffers.inputs - first) / more) + 1
            sums = np.floor(buffers.outputs / outputs)
            both = np.floor((buffers.shared - weights - first - outputs) / (more + outputs)) + 1
            return np.asarray(np.minimum(np.minimum(inputs, sums), both))

        sums = columns * self._accumulator
        line = channels * self._read_w * self._activation
        rows = most(line * self._span_h, line * works.stride_height, sums * works.out_width)
        window = channels * self._span_h * self._activation
        pixels = most(window * self._span_w, window * np.minimum(works.stride_width, self._span_w), sums)
        all_rows = works.batch * works.out_height
        by_row = np.ceil(all_rows / np.clip(rows, 1, all_rows))
        by_pixel = all_rows * np.ceil(works.out_width / np.clip(pixels, 1, works.out_width))
        return np.where(rows >= 1, by_row, by_pixel), fits & ((rows >= 1) | (pixels >= 1))

    def _inputs_of(self, rows: IntArray, channels: IntArray) -> FloatArray:
        """Bits that one row of pixels, or where that is too much one pixel, reads."""
        window = channels * self._span_h * self._span_w * self._activation
        return np.asarray(rows * window, dtype=np.float64)

    def _traffic(
        self, n_rows: FloatArray, n_columns: npt.NDArray[Any], n_depth: npt.NDArray[Any], fits: npt.NDArray[np.bool_]
    ) -> Offchip:
        works = self._works
        resident = (n_rows == 1) & (n_columns == 1) & (n_depth == 1) | (works.steps == 1)
        weights = works.weights * self._weight * n_rows * np.where(resident, 1, works.steps)
        shared_rows = np.maximum(self._span_h - works.stride_height, 0) * (n_rows - 1)
        halo = works.in_channels * works.groups * self._read_w * shared_rows * works.steps
        inputs = (works.inputs + np.minimum(halo, works.inputs * (n_rows - 1))) * self._activation * n_columns
        outputs = works.outputs * self._output
        sums = works.outputs * self._accumulator * 2 * (n_depth - 1)
        return Offchip(weights, inputs, sums, outputs, fits)


def _part(size: IntArray, count: int) -> IntArray:
    return -(-size // count)


def _tiles(size: IntArray, count: int) -> IntArray:
    return np.minimum(size, count)


def _less(first: Offchip, second: Offchip) -> Offchip:
    """The better of two, row by row."""
    take = second.fits & (~first.fits | (second.total < first.total))
    return Offchip(
        *(
            np.where(take, getattr(second, name), getattr(first, name))
            for name in ("weights", "inputs", "partial_sums", "outputs", "fits")
        )
    )
