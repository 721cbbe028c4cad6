"""The least traffic between a chip and its memory that tiles of a layer allow, given the chip's buffers.

A layer is a product of [P, K] by [K, N] (see `workloads`). Of three orders of its tiles each keeps one operand still
(Chen et al., "Eyeriss", ISCA 2016, name them output-, weight- and input-stationary); with nP, nK, nN tiles along each
axis the chip reads and writes

    outputs still    W * nP + A * nN + O
    weights still    W + A * nN + O * (2 nK - 1)
    inputs still     A + W * nP + O * (2 nK - 1)

To A comes what neighbouring tiles share and the chip does not keep. The numbers of tiles along K (along N where outputs
are still) are tried (`COUNTS`), those along the other axes follow: the fewest whose tiles fit. Fewer bits, fewer
channels or a larger buffer never raise the least traffic, since every tiling that fitted still fits and moves no more.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, fields
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


_NAMES = tuple(field.name for field in fields(Offchip))


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
    found = _Tiles(works, buffers, operands).tilings()
    best = np.argmin(np.where(found.fits, found.total, np.inf), axis=0)[None]
    return Offchip(*(np.take_along_axis(getattr(found, name), best, axis=0)[0] for name in _NAMES))


@dataclass(frozen=True)
class _Rows:
    """Tiles along P, arrays [tilings, N].

    Attributes:
        bands: of whole rows of pixels.
        across: tiles across each band.
        fits: whether any such tile fits.
    """

    bands: FloatArray
    across: FloatArray
    fits: npt.NDArray[np.bool_]


class _Tiles:
    """Tilings of each layer, arrays [tilings, N]. Groups run one after the other, each with tiles of its own."""

    def __init__(self, works: Workloads, buffers: Buffers, operands: Operands) -> None:
        # of a product each image has a second matrix of its own, as each group has
        images = np.where(works.product > 0, works.batch, 1)
        works = works.replace(groups=works.groups * images, batch=works.batch // images)
        self._works, self._buffers = works, buffers
        self._weight, self._activation, self._output, self._accumulator = (
            np.broadcast_to(np.asarray(bits, dtype=np.float64), (len(works),))
            for bits in (operands.weight, operands.activation, operands.output, operands.accumulator)
        )
        self._span_h = (works.kernel_height - 1) * works.dilation_height + 1
        self._span_w = (works.kernel_width - 1) * works.dilation_width + 1
        self._lines = np.minimum(works.in_height, (works.out_height - 1) * works.stride_height + self._span_h)
        self._read_w = np.minimum(works.in_width, (works.out_width - 1) * works.stride_width + self._span_w)
        self._window_h, self._window_w = np.minimum(self._span_h, self._lines), np.minimum(self._span_w, self._read_w)

    def tilings(self) -> Offchip:
        """All three orders, every number of tiles; arrays [tilings, N]."""
        by_columns = self._outputs_still(*_parts(self._works.out_channels))
        depths = _parts(self._works.in_channels)
        by_depth = [*self._weights_still(*depths), self._inputs_still(*depths)]
        shape = by_columns.fits.shape[1:]
        # of equal tilings the first is taken: those of fewest parts before those of more
        rest = (np.stack([getattr(each, name) for each in by_depth], axis=1).reshape(-1, *shape) for name in _NAMES)
        first = (getattr(by_columns, name) for name in _NAMES)
        return Offchip(*map(np.concatenate, zip(first, rest, strict=True)))

    def _outputs_still(self, columns: IntArray, n_columns: IntArray) -> Offchip:
        """One channel after the other passes by."""
        one = np.ones_like(columns)
        rows = self._fewest_rows(columns, one)
        return self._traffic(rows.bands * rows.across, n_columns, one, self._overlap(rows), rows.fits)

    def _weights_still(self, channels: IntArray, n_depth: IntArray) -> Iterator[Offchip]:
        """As many columns as fit beside what passes by: a row of pixels and all lines that it reads, so that each is
        read once; or one pixel, and lines are read again for each row."""
        works = self._works
        one = np.ones_like(channels, dtype=np.float64)
        line = channels * self._read_w * self._activation
        row = self._weights_beside(channels, line * self._window_h, works.out_width)
        yield self._traffic(one, row[0], n_depth, 0 * one, row[1], stay=n_depth * row[0] == 1)
        window = channels * self._window_h * self._window_w * self._activation
        pixel = self._weights_beside(channels, window, works.out_width * 0 + 1)
        again = self._overlap(_Rows(one * works.batch * works.out_height, one, pixel[1]))
        yield self._traffic(one, pixel[0], n_depth, again, pixel[1], stay=n_depth * pixel[0] == 1)

    def _weights_beside(
        self, channels: IntArray, inputs: FloatArray, pixels: IntArray
    ) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """The fewest tiles along N beside so many bits of inputs and sums of so many pixels, and whether they fit."""
        works, buffers = self._works, self._buffers
        column = channels * works.kernel * self._weight
        sums = pixels * self._accumulator
        most = np.minimum(buffers.weights / column, buffers.outputs / sums)
        most = np.floor(np.minimum(most, (buffers.shared - inputs) / (column + sums)))
        n_columns = np.ceil(works.out_channels / np.clip(most, 1, works.out_channels))
        return n_columns, (most >= 1) & (inputs <= buffers.inputs)

    def _inputs_still(self, channels: IntArray, n_depth: IntArray) -> Offchip:
        """One column after the other passes by; of whole depth the lines that tiles share stay."""
        rows = self._fewest_rows(np.ones_like(channels), channels)
        one = np.ones_like(rows.across)
        along = _Rows(np.where(rows.across == 1, one, rows.bands), one, rows.fits)
        again = np.where(n_depth == 1, self._overlap(along), self._overlap(rows))
        return self._traffic(rows.bands * rows.across, np.ones_like(channels), n_depth, again, rows.fits)

    def _fewest_rows(self, columns: IntArray, channels: IntArray) -> _Rows:
        """The fewest tiles along P for tiles of so many channels in and out: whole images where one fits, else whole
        rows of pixels of an image, else pixels of a row."""
        works, buffers = self._works, self._buffers
        weights = columns * channels * works.kernel * self._weight

        def most(first: FloatArray, more: FloatArray, outputs: FloatArray) -> FloatArray:
            """Units along P, where the first reads `first` bits, each further one `more`, and each sums `outputs`."""
            inputs = np.floor((buffers.inputs - first) / more) + 1
            sums = np.floor(buffers.outputs / outputs)
            both = np.floor((buffers.shared - weights - first - outputs) / (more + outputs)) + 1
            return np.asarray(np.minimum(np.minimum(inputs, sums), both))

        sums = columns * self._accumulator
        line = channels * self._read_w * self._activation
        image = line * self._lines
        images = most(image, image, sums * works.out_width * works.out_height)
        rows = most(line * self._window_h, line * works.stride_height, sums * works.out_width)
        column = channels * self._window_h * self._activation
        pixels = most(column * self._window_w, column * np.minimum(works.stride_width, self._span_w), sums)
        by_image = np.ceil(works.batch / np.clip(images, 1, works.batch))
        by_row = works.batch * np.ceil(works.out_height / np.clip(rows, 1, works.out_height))
        whole = (images >= 1) | (rows >= 1)
        across = np.where(whole, 1.0, np.ceil(works.out_width / np.clip(pixels, 1, works.out_width)))
        fits = (weights <= buffers.weights) & (whole | (pixels >= 1))
        return _Rows(np.where(images >= 1, by_image, by_row), across, fits)

    def _overlap(self, rows: _Rows) -> FloatArray:
        """Numbers of all groups' inputs that tiles read which others of the same image have read, in one step."""
        works = self._works
        lines, columns = self._span_h - works.stride_height, self._span_w - works.stride_width  # of two tiles
        above = np.clip(lines, 0, self._lines) * self._read_w * np.maximum(rows.bands - works.batch, 0)
        beside = np.clip(columns, 0, self._read_w) * self._window_h * rows.bands * (rows.across - 1)
        return np.asarray(works.in_channels * works.groups * (above + beside))

    def _traffic(
        self,
        n_rows: FloatArray,
        n_columns: npt.NDArray[Any],
        n_depth: npt.NDArray[Any],
        again: FloatArray,
        fits: npt.NDArray[np.bool_],
        stay: npt.ArrayLike = False,
    ) -> Offchip:
        """Given tiles along each axis, what of the inputs is read again, and whether weights stay over the steps."""
        works = self._works
        anew = np.where(np.asarray(stay) & (works.groups == 1), 1, works.steps)
        weights = works.weights * self._weight * n_rows * anew
        inputs = (works.inputs + again * works.steps) * self._activation * n_columns
        outputs = works.outputs * self._output
        sums = works.outputs * self._accumulator * 2 * (n_depth - 1)
        return Offchip(*np.broadcast_arrays(weights, inputs, sums, outputs, fits))


def _parts(sizes: IntArray) -> tuple[IntArray, IntArray]:
    """What the largest part of sizes [N] is, and how many parts there are, for each of `COUNTS`, [counts, N]; with more
    than the largest size has no part would be smaller."""
    counts = np.array(COUNTS[: 1 + bisect_left(COUNTS, int(sizes.max(initial=1)))])[:, None]
    return -(-sizes // counts), np.minimum(sizes, counts)
