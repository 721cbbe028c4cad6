"""Systolic arrays with output-, weight- or input-stationary dataflow (Samajdar et al., "SCALE-Sim", 2018, and ISPASS
2020; Jouppi et al., "In-datacenter performance analysis of a tensor processing unit", ISCA 2017).

A layer is `count` products of [P, K] by [K, N]. One operand stays in the array of r x c units, in folds of r x c
numbers, while T numbers a row pass by:

                Sr  Sc  T     SRAM reads of inputs, weights     SRAM writes of outputs
    outputs     P   N   K     P K fc        K N fr              P N
    weights     K   N   P     P K fc        K N                 P N fr
    inputs      K   P   N     P K           K N fc              P N fr

with fr = ceil(Sr / r) and fc = ceil(Sc / c). A product takes fr fc (T + r + c - 2 + l) - 1 cycles: l = r where weights
or inputs are shifted in first, else 0. A batch lengthens P; groups, heads and time steps follow one another; dilation
and stride only choose what is read.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from backends.accelerators.accelerator import Accelerator, Description, Usage
from backends.accelerators.energy import Technology
from backends.accelerators.memory import Traffic
from backends.accelerators.tiling import Buffers, Offchip, Operands, least_traffic
from backends.accelerators.workloads import FloatArray, IntArray, Workloads
from search_spaces.errors import InputError
from search_spaces.sections import Section

NO_BITS = 1e-30
"""Bits of a number that moves nowhere; above 0, since tilings divide by it."""


class Grid(Section):
    """Rows and columns of an array or a tile."""

    rows: int = Field(ge=1, le=65536)
    columns: int = Field(ge=1, le=65536)


class SystolicDescription(Description):
    """What a systolic array is described by.

    Attributes:
        array: its multiply-accumulate units.
        dataflow: which operand stays in the array.
        unit_bits: of each operand that a unit multiplies at once; a wider operand takes several passes. None where
            every supported number takes one.
        overlapped: whether a fold is shifted in and out while others compute; it then takes max(T, r) cycles, and the
            array fills and drains once a layer.
        weight_tile: in tiles of which size weights lie in memory, filled up with zeros; None where they lie dense. Off
            the chip move at least these tiles, inputs and outputs once; tiles that do not fit, in every time step.
        keeps_activations: whether what a layer reads and gives stays in the memory `inputs`, where both fit it.
    """

    array: Grid
    dataflow: Literal["output_stationary", "weight_stationary", "input_stationary"]
    unit_bits: int | None = Field(default=None, ge=1, le=32)
    overlapped: bool = False
    weight_tile: Grid | None = None
    keeps_activations: bool = False

    @model_validator(mode="after")
    def _tile_stays(self) -> "SystolicDescription":
        if self.weight_tile is not None and self.dataflow != "weight_stationary":
            raise ValueError(f"weights lie in tiles where they are stationary; the dataflow is {self.dataflow}")
        return self


@dataclass(frozen=True)
class Folds:
    """How layers lie on an array, arrays [N].

    Attributes:
        count: of matrix products one after the other, in all passes and steps.
        down, across: folds along the rows and along the columns of the array.
        stream: numbers of each row that pass by in a fold.
        inputs, weights, outputs: accesses of the memories beside the array, in numbers.
        sums: how often each output is written: once, or for every fold down and every pass.
    """

    count: IntArray
    down: IntArray
    across: IntArray
    stream: IntArray
    inputs: IntArray
    weights: IntArray
    outputs: IntArray
    sums: IntArray


class SystolicArray(Accelerator[SystolicDescription]):
    """The array's cycles, or those of a memory where it is slower; traffic off the chip is the least that tiles allow.

    What an operand's memory holds is not tied to the order of the folds: tiles are taken to be cut where folds are.
    Zeros are multiplied like other numbers. Moving numbers from unit to unit is no energy of its own.
    """

    Sections: ClassVar[type[Description]] = SystolicDescription
    levels: ClassVar[tuple[str, ...]] = ("dram", "inputs", "weights", "outputs")
    elements: ClassVar[tuple[str, ...]] = ("array.rows", "array.columns")

    def __init__(self, description: SystolicDescription, technology: Technology) -> None:
        super().__init__(description, technology)
        array, bits = description.array, description.activation_bits[0]
        level = description.dataflow.removesuffix("_stationary") + "s"
        if level == "weights":
            bits = description.weight_bits[0]
        usable, least = self.memories[level].usable_bits, array.rows * array.columns * bits
        if usable < least:
            raise InputError(
                f"the memory level {level!r} has {usable / 8192:g} KiB for a tile, and one of {array.rows} x "
                f"{array.columns} numbers of {bits} bits takes {least / 8192:g} KiB; give it more, or a smaller array"
            )

    def refusals(self, works: Workloads) -> list[str | None]:
        """Those of every accelerator, and layers whose smallest tile is larger than the memories beside the array."""
        fits = self._offchip(self.fitted(works)).fits.tolist()
        reason = "its smallest tile does not fit the memories of inputs, weights and outputs"
        return [found or (None if fit else reason) for found, fit in zip(super().refusals(works), fits, strict=True)]

    def run(self, works: Workloads) -> Usage:
        """Traffic of the memories beside the array is what the array reads and writes, and each number's way in or out
        once; a number that tiles fetch again counts again at the DRAM alone."""
        folds = self.folds(works)
        array, passes = self.description.array, self._passes(works)
        return self.used(
            works,
            self._stream_cycles(folds) + self._fill_cycles(works, folds),
            self._traffic(works, folds),
            peak_macs_per_cycle=array.rows * array.columns / np.prod(passes, axis=0),
        )

    def fill_cycles(self, works: Workloads) -> FloatArray:
        """Cycles of the array in which nothing new streams in."""
        return self._fill_cycles(works, self.folds(works))

    def folds(self, works: Workloads) -> Folds:
        """How the layers lie on the array."""
        images = np.where(works.product > 0, works.batch, 1)  # each with a second matrix of its own
        rows, depth, columns = works.rows // images, works.depth, works.out_channels
        passes = np.prod(self._passes(works), axis=0)
        count = works.groups * images * works.steps * passes
        one = np.ones_like(count)
        dataflow, array = self.description.dataflow, self.description.array
        if dataflow == "output_stationary":
            high, wide, stream = rows, columns, depth
        elif dataflow == "weight_stationary":
            high, wide, stream = depth, columns, rows
        else:
            high, wide, stream = depth, rows, columns
        down, across = -(-high // array.rows), -(-wide // array.columns)
        still = {
            "output_stationary": (across, down, one),
            "weight_stationary": (across, one, down * passes),
            "input_stationary": (one, across, down * passes),
        }
        input_reads, weight_reads, sums = still[dataflow]
        return Folds(
            count=count,
            down=down,
            across=across,
            stream=stream,
            inputs=count * rows * depth * input_reads,
            weights=count * depth * columns * weight_reads,
            outputs=works.outputs * sums,
            sums=sums,
        )

    def _passes(self, works: Workloads) -> IntArray:
        """Of the weights and of the activations, [2, N]."""
        bits = np.stack([works.weight_bits, works.activation_bits])
        unit = self.description.unit_bits
        return np.ones_like(bits) if unit is None else -(-bits // unit)

    def _stream_cycles(self, folds: Folds) -> FloatArray:
        return np.asarray(folds.count * folds.down * folds.across * folds.stream, dtype=np.float64)

    def _fill_cycles(self, works: Workloads, folds: Folds) -> FloatArray:
        rows, columns = self.description.array.rows, self.description.array.columns
        load = 0 if self.description.dataflow == "output_stationary" else rows
        through = rows + columns - 2 + load
        number = folds.count * folds.down * folds.across
        if self.description.overlapped:
            fill = number * np.maximum(rows - folds.stream, 0) + works.steps * (through - 1)
        else:
            fill = number * through - folds.count
        return np.asarray(np.maximum(fill, 0), dtype=np.float64)  # below 0 on an array of one unit

    def _traffic(self, works: Workloads, folds: Folds) -> dict[str, Traffic]:
        moved = self._offchip(works)
        weight_passes, activation_passes = self._passes(works)  # a pass reads a slice of each number
        inputs = folds.inputs / activation_passes * works.activation_bits
        weights = folds.weights / weight_passes * works.weight_bits
        results = works.outputs * works.activation_bits
        sums = works.outputs * (folds.sums - 1.0) * self.description.accumulator_bits
        stored = self._stored(works)
        again = np.where(stored <= self.memories["weights"].usable_bits, 1, works.steps)
        once = stored * again + (works.inputs + works.outputs) * self._offchip_bits(works)
        filling = np.maximum(once - moved.total, 0.0)  # of tiles of weights
        return {
            "dram": Traffic(moved.read + filling, moved.written),
            "inputs": Traffic(inputs, (works.inputs * works.activation_bits).astype(np.float64)),
            "weights": Traffic(weights, stored),
            "outputs": Traffic(results + sums, results + sums),
        }

    def _offchip(self, works: Workloads) -> Offchip:
        sizes = {level: self.memories[level].usable_bits for level in ("inputs", "weights", "outputs")}
        activation = self._offchip_bits(works)
        operands = Operands(works.weight_bits, activation, activation, self.description.accumulator_bits)
        return least_traffic(works, Buffers(**sizes), operands)

    def _offchip_bits(self, works: Workloads) -> FloatArray:
        """Of a number that a layer reads or gives, where it leaves the chip."""
        kept = (works.inputs + works.outputs) * works.activation_bits <= self.memories["inputs"].usable_bits
        return np.where(kept & self.description.keeps_activations, NO_BITS, works.activation_bits)

    def _stored(self, works: Workloads) -> FloatArray:
        """Bits of the weights as they lie in memory, what fills their tiles up included."""
        rows, columns, tile = works.depth, works.out_channels, self.description.weight_tile
        if tile is not None:
            rows, columns = -(-rows // tile.rows) * tile.rows, -(-columns // tile.columns) * tile.columns
        matrices = works.weights // (works.depth * works.out_channels)
        return (matrices * rows * columns * works.weight_bits).astype(np.float64)
