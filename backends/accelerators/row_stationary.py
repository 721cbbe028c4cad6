"""Row stationary arrays: Eyeriss (Chen et al., ISSCC 2016 and JSSC 2017; the dataflow: Chen et al., ISCA 2016).

A processing element slides a row of the kernel along a row of the input; a set of R x e of them computes e rows of one
output. In the paper's letters, with B images, C channels in, N out (of a group), H x W pixels in, E x F out and kernels
of R x S:

    e      rows of outputs in a pass        p, q   filters and channels that take turns in an element
    m, n   outputs and images whose         r, t   sets beside each other with other channels, with other filters:
           partial sums are on the chip            r * t sets of R x e elements fill the array

A pass takes q * r channels of p * t filters over e rows. Each pass reads its partial sums from the global buffer and
writes them back; that, and not the multipliers, is what the chip waits for on most of VGG-16. In numbers:

    partial sums = 2 * ceil(C / (q r)) * B N E F
    inputs       = ceil(N / (p t)) * B C H W      with the rows that neighbouring passes share once for each

An element's adder takes either a product or a sum from its neighbour (JSSC 2017, figure 12), so that for the S q
products of a sum it takes S q + 1 cycles:

    cycles = B ceil(E / e) F ceil(N / t) * (S ceil(C / r) + ceil(C / (r q)))

The mapping is searched: all of e, r and q below are tried, and t, p, m and n are as many as fit. How the global buffer
is divided between partial sums and inputs, and how many rows a pass has at least, is no result of the search but of the
description: with other mappings that would fit the chip were far faster on VGG-16 than it was measured to be.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from backends.accelerators.accelerator import Accelerator, Description, Usage
from backends.accelerators.energy import Technology
from backends.accelerators.memory import Traffic
from backends.accelerators.tiling import COUNTS
from backends.accelerators.workloads import FloatArray, IntArray, Workloads
from search_spaces.errors import InputError
from search_spaces.sections import Section

RUN_BITS = 5
"""Of a run of zeros in DRAM; three runs and the numbers after them fill a word."""
WORD_BITS = 64
PADS = ("filter_spad", "ifmap_spad", "psum_spad")
"""Scratch pads of a processing element."""


class ArraySection(Section):
    """Processing elements."""

    rows: int = Field(ge=1, le=1024)
    columns: int = Field(ge=1, le=1024)


class RowStationaryDescription(Description):
    """An array with a scratch pad for each operand in an element, and a buffer that all share.

    Attributes:
        array: its processing elements.
        pass_rows: rows of outputs that a pass has at least, where a layer has as many.
        psum_share: of the global buffer, for partial sums; the rest is for two tiles of inputs, one of them on its way.
    """

    array: ArraySection
    pass_rows: int = Field(ge=1, le=64)
    psum_share: float = Field(gt=0, lt=1)


@dataclass(frozen=True)
class Mapping:
    """How layers are laid out, arrays [N], in the paper's letters: see the module.

    Attributes:
        m, n, e, p, q, r, t: whole numbers; a pass of more rows e than the array has columns is folded.
        pieces: that rows of the output are cut into, where not even one channel of whole rows fits.
        active: processing elements with work, on average over the passes.
    """

    m: IntArray
    n: IntArray
    e: IntArray
    p: IntArray
    q: IntArray
    r: IntArray
    t: IntArray
    pieces: IntArray
    active: FloatArray


class RowStationary(Accelerator[RowStationaryDescription]):
    """The slowest of the array, of the global buffer and of memory, each under the mapping that is best for it.

    Where one mapping is best for the array and another for the buffer, the chip is somewhat slower than the figure,
    which only so never rises when a layer shrinks; `mapping` gives the best compromise and `attained` its cycles.
    Groups run one after the other. A kernel with more rows than the array is cut, and so are rows of it that a scratch
    pad does not hold, or that leave it too few filters; the parts are taken as further channels. Fewer bits than the
    hardware has are stored and moved as those it has.
    """

    Sections: ClassVar[type[Description]] = RowStationaryDescription
    levels: ClassVar[tuple[str, ...]] = ("dram", "global_buffer", *PADS)
    elements: ClassVar[tuple[str, ...]] = ("array.rows", "array.columns")

    def __init__(self, description: RowStationaryDescription, technology: Technology) -> None:
        super().__init__(description, technology)
        bits = (description.weight_bits[-1], description.activation_bits[-1], description.accumulator_bits)
        for name, most in zip(PADS, bits, strict=True):
            if self.memories[name].usable_bits < most:
                raise InputError(f"the memory level {name!r} holds not even one number of {most} bits; enlarge it")

    def refusals(self, works: Workloads) -> list[str | None]:
        """Those of every accelerator, and layers of which no pass fits the buffers."""
        found = super().refusals(works)
        fits = _Passes(self, self.fitted(works)).fits.any(axis=(0, 1, 2))
        return [
            reason or (None if fit else "the rows that one pass reads do not fit the global buffer or a scratch pad")
            for reason, fit in zip(found, fits.tolist(), strict=True)
        ]

    def run(self, works: Workloads) -> Usage:
        """Multiplications by inputs that are zero take their cycle, but no energy beyond that of reading the zero."""
        passes = _Passes(self, works)
        done = works.macs * works.activation_density
        sums = done * self.description.accumulator_bits
        traffic = {
            "dram": _memory_traffic(self, works),
            "global_buffer": passes.least_traffic(),
            "filter_spad": Traffic(done * works.weight_bits, np.zeros(len(works))),
            "ifmap_spad": Traffic(np.asarray(works.macs * works.activation_bits, float), np.zeros(len(works))),
            "psum_spad": Traffic(sums, sums),
        }
        array = self.description.array
        return self.used(
            works,
            passes.least(passes.compute_cycles),
            traffic,
            peak_macs_per_cycle=array.rows * array.columns,
            compute_j=done * self.mac_j(works.weight_bits, works.activation_bits),
            memory_cycles={"global_buffer": passes.least(passes.buffer_cycles)},
        )

    def mapping(self, works: Workloads) -> Mapping:
        """The mapping that takes fewest cycles, of equal ones the one with least traffic at the global buffer."""
        passes = _Passes(self, works)
        return passes.mapping()

    def attained(self, works: Workloads) -> FloatArray:
        """Cycles under one mapping for both the array and the global buffer, [N]; at least those that `run` gives."""
        passes = _Passes(self, works)
        found = np.take_along_axis(passes.flat(passes.cycles), passes.fastest()[None], axis=0)[0]
        return np.asarray(np.maximum(found, self.run(works).cycles))


class _Passes:
    """All mappings of layers; arrays [e, r, q, N], or of size 1 along an axis that does not matter."""

    def __init__(self, accelerator: RowStationary, works: Workloads) -> None:
        self.works, self._accelerator, self._buffer = works, accelerator, accelerator.memories["global_buffer"]
        description, memories = accelerator.description, accelerator.memories
        array, least = description.array, description.pass_rows
        bits = (works.weight_bits, works.activation_bits, np.full_like(works.batch, description.accumulator_bits))
        filter_words, ifmap_words, psum_words = (
            (memories[name].usable_bits // each).astype(np.int64) for name, each in zip(PADS, bits, strict=True)
        )
        turns, cuts = self._turns(int(ifmap_words.max(initial=1)))
        self.q = _axis(turns, 2)
        self.r = _axis([count for count in COUNTS if count <= array.rows * array.columns], 1)
        self.rows = np.minimum(_axis(range(least, max(least, min(array.columns, 2 * least)) + 1), 0), works.out_height)
        self.blocks = -(-works.out_height // self.rows)

        # kernels in parts that count as channels: where they are too large, and where shorter rows are better
        high = -(-works.kernel_height // array.rows)
        self._high, self._long = -(-works.kernel_height // high), -(-works.kernel_width // _axis(cuts, 2))
        self._parts = high * -(-works.kernel_width // self._long)

        self._folds = -(-self.rows // array.columns)
        self._sets = (array.rows // self._high) * (array.columns // np.minimum(self.rows, array.columns))
        self._tile()
        buffer = self._buffer.usable_bits
        # sums of whole rows, also where rows are cut: else a larger buffer, which cuts less, would hold fewer outputs
        self.held = buffer * description.psum_share // (self.rows * works.out_width * description.accumulator_bits)
        self.m = np.minimum(self.held, works.out_channels).astype(np.int64)
        self.t = np.minimum(self._sets // self.r, self.m)
        share = -(-works.in_channels // self.r)  # of channels, of a set
        self.q_used = np.minimum(self.q, share)
        if_not_all = np.minimum(self.q_used, self._channels // self.r)
        self.q_used = np.where(works.in_channels <= self._channels, self.q_used, if_not_all)
        self.p = np.minimum(np.minimum(filter_words // (self.q * self._long), psum_words), self.m)
        in_pad = self.q * self._long <= ifmap_words
        self.fits = (self.t >= 1) & (self.q_used >= 1) & (self.p >= 1) & in_pad

    def _turns(self, words: int) -> tuple[list[int], list[int]]:
        """Channels that take turns in an element with input scratch pads of so many words, and the parts of each row
        of the kernel: several channels of whole rows, or one of rows in parts."""
        whole = [count for count in COUNTS if count <= words]
        cuts = _counts(self.works.kernel_width)[1:]
        return whole + [1] * len(cuts), [1] * len(whole) + cuts

    def _tile(self) -> None:
        """Columns of a piece, pieces, and channels of which two tiles fit beside the partial sums."""
        works, accelerator = self.works, self._accelerator
        share = 1 - accelerator.description.psum_share
        lines = _span(self.rows, works.kernel_height, works.stride_height, works.dilation_height)
        room = self._buffer.usable_bits * share / (2 * lines * works.activation_bits)
        span = (works.kernel_width - 1) * works.dilation_width + 1
        most = np.floor((room - span) / np.minimum(works.stride_width, span)) + 1
        self.pieces = -(-works.out_width // np.clip(most, 1, works.out_width).astype(np.int64))
        self.columns = -(-works.out_width // self.pieces)
        wide = _span(self.columns, works.kernel_width, works.stride_width, works.dilation_width)
        self._channels = np.floor(room / wide).astype(np.int64)

    @property
    def compute_cycles(self) -> FloatArray:
        """Of the array, [e, r, q, N]."""
        works = self.works
        channels = -(-works.in_channels // self.r)
        turns = -(-channels // np.maximum(self.q_used, 1))
        runs = works.batch * works.groups * works.steps * works.out_width * self.blocks * self._folds
        filters = -(-works.out_channels // np.maximum(self.t, 1))
        return np.asarray(runs * filters * self._parts * (channels * self._long + turns), dtype=np.float64)

    @property
    def psum_traffic(self) -> FloatArray:
        """Bits of partial sums that the global buffer reads, and as many that it writes, [1, r, q, N] or more."""
        works = self.works
        turns = -(-works.in_channels // np.maximum(self.q_used * self.r, 1)) * self._parts
        return np.asarray(turns * works.outputs * float(self._accelerator.description.accumulator_bits))

    @property
    def input_traffic(self) -> FloatArray:
        """Bits of inputs that the global buffer reads, borders included, [e, r, q, N]."""
        works = self.works
        lines = _all(works.out_height, self.blocks, works.kernel_height, works.stride_height, works.dilation_height)
        wide = _all(works.out_width, self.pieces, works.kernel_width, works.stride_width, works.dilation_width)
        times = -(-works.out_channels // np.maximum(np.minimum(self.p * self.t, self.m), 1))
        plane = works.batch * works.groups * works.steps * works.in_channels * works.activation_bits
        return np.asarray(plane * times * lines * wide, dtype=np.float64)

    @property
    def _moved(self) -> Traffic:
        """At the global buffer, [e, r, q, N]."""
        sums = self.psum_traffic
        return Traffic(sums + self.input_traffic, np.broadcast_to(sums, np.shape(self.input_traffic)))

    @property
    def cycles(self) -> FloatArray:
        """Of the array and the global buffer together, [e, r, q, N]."""
        return np.maximum(self.compute_cycles, self.buffer_cycles)

    @property
    def buffer_cycles(self) -> FloatArray:
        """Of the global buffer alone, [e, r, q, N]."""
        return self._buffer.cycles(self._moved)

    def least_traffic(self) -> Traffic:
        """At the global buffer, under the mapping with which it takes least energy, of equal ones with fewest bits.

        Reads and writes may differ in bandwidth and energy: its cycles may be least under another mapping.
        """
        moved = self._moved
        energy = self.flat(self._buffer.energy_j(moved))
        bits = np.where(energy <= energy.min(axis=0), self.flat(moved.bits), np.inf)
        best = np.argmin(bits, axis=0)[None]
        read, written = (self._rows(each) for each in (moved.read_bits, moved.written_bits))
        return Traffic(*(np.take_along_axis(each, best, axis=0)[0] for each in (read, written)))

    def least(self, cost: FloatArray) -> FloatArray:
        """Of all mappings that fit, [N]."""
        return np.asarray(self.flat(cost).min(axis=0))

    def fastest(self) -> IntArray:
        """Numbers of mappings, [N]."""
        cycles = self.flat(self.cycles)
        bits = self.flat(self._moved.bits)
        return np.asarray(np.argmin(np.where(cycles <= cycles.min(axis=0), bits, np.inf), axis=0))

    def mapping(self) -> Mapping:
        """The fastest."""
        works, numbers = self.works, self.fastest()
        r, t = np.minimum(self.r, works.in_channels), np.minimum(self.t, works.out_channels)
        p = np.minimum(self.p, -(-self.m // np.maximum(self.t, 1)))
        n = np.minimum(works.batch, self.held // np.maximum(self.m, 1)).astype(np.int64)
        active = self._high * r * t * works.out_height / (self.blocks * self._folds)
        every = (self.m, n, self.rows, p, self.q_used, r, t, self.pieces, active)
        chosen = (np.take_along_axis(self._rows(np.asarray(each)), numbers[None], axis=0)[0] for each in every)
        return Mapping(**dict(zip((field.name for field in fields(Mapping)), chosen, strict=True)))

    def flat(self, cost: FloatArray) -> FloatArray:
        """[mappings, N], infinite where one does not fit."""
        return np.where(self._rows(self.fits), self._rows(cost), np.inf)

    def _rows(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        shape = (self.rows.shape[0], self.r.shape[1], self.q.shape[2], len(self.works))
        return np.broadcast_to(values, shape).reshape(-1, len(self.works))


def _memory_traffic(accelerator: RowStationary, works: Workloads) -> Traffic:
    """Least traffic of DRAM where partial sums never leave the chip.

    The global buffer holds the sums of m outputs of n images, of e rows in so many pieces, beside two tiles of inputs.
    Inputs are read again for other outputs, weights for other images, rows and pieces. Zeros of inputs and outputs are
    coded as lengths of their runs; outputs have as many as the description says, being what the next layer reads.
    """
    description = accelerator.description
    buffer = accelerator.memories["global_buffer"].usable_bits
    axes = (_axis(_counts(works.out_height), 0), _axis(_counts(works.out_width), 1), _axis(_counts(works.batch), 2))
    rows, columns, images = -(-works.out_height // axes[0]), -(-works.out_width // axes[1]), -(-works.batch // axes[2])
    blocks, pieces = -(-works.out_height // rows), -(-works.out_width // columns)
    height = (works.kernel_height, works.stride_height, works.dilation_height)
    width = (works.kernel_width, works.stride_width, works.dilation_width)
    tiles = 2.0 * _span(rows, *height) * _span(columns, *width) * works.activation_bits
    held = np.floor((buffer - tiles) / (images * rows * columns * description.accumulator_bits))
    times = np.ceil(works.out_channels / np.maximum(held, 1))

    lines = np.minimum(works.read_height + _shared(*height) * (blocks - 1), works.read_height * blocks)
    wide = np.minimum(works.read_width + _shared(*width) * (pieces - 1), works.read_width * pieces)
    plane = works.batch * works.groups * works.in_channels * works.steps
    inputs = plane * lines * wide * times * _coded(works.activation_density, works.activation_bits)
    each = works.depth * works.out_channels * works.groups * works.steps * works.weight_bits * blocks * pieces
    weights = each * np.where(works.product > 0, works.batch, -(-works.batch // images))
    read = np.where(held >= 1, inputs + weights, np.inf).min(axis=(0, 1, 2))
    density = np.full(len(works), description.activation_density)
    return Traffic(read, works.outputs * _coded(density, works.activation_bits))


def _counts(sizes: IntArray) -> list[int]:
    """Numbers of parts: up to as many as there is something of."""
    most = int(sizes.max(initial=1))
    return [count for count in COUNTS if count < 2 * most]


def _axis(values: Any, place: int) -> IntArray:
    """As the axis of that place of four."""
    return np.array(values, dtype=np.int64).reshape([-1 if axis == place else 1 for axis in range(4)])


def _reach(kernel: IntArray, dilation: IntArray) -> IntArray:
    return (kernel - 1) * dilation + 1


def _span(outputs: IntArray, kernel: IntArray, stride: IntArray, dilation: IntArray) -> IntArray:
    """Pixels along an axis that so many outputs read, borders included."""
    reach = _reach(kernel, dilation)
    return np.asarray((outputs - 1) * np.minimum(stride, reach) + reach)


def _all(outputs: IntArray, parts: IntArray, kernel: IntArray, stride: IntArray, dilation: IntArray) -> IntArray:
    """Pixels along an axis that all outputs read in so many parts: what neighbours share counts twice."""
    return np.asarray(_span(outputs, kernel, stride, dilation) + (parts - 1) * _shared(kernel, stride, dilation))


def _shared(kernel: IntArray, stride: IntArray, dilation: IntArray) -> IntArray:
    """Pixels along an axis that neighbouring parts both read."""
    return np.asarray(np.maximum(_reach(kernel, dilation) - stride, 0))


def _coded(density: FloatArray, bits: IntArray) -> FloatArray:
    """Bits of a number in DRAM: three in a word, each with the run of zeros before it; at most what it has uncoded.

    A run that is too long is ended by a zero that is stored: d / (1 - (1 - d) ** 32) numbers are (JSSC 2017, IV).
    """
    stored = density / (1 - (1 - density) ** (1 << RUN_BITS))
    in_word = np.maximum((WORD_BITS - 1) // (bits + RUN_BITS), 1)
    return np.minimum(stored * WORD_BITS / in_word, bits)
