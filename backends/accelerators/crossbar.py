"""Memristor crossbars that hold weights and multiply where they stand (ISAAC, Shafiee et al., ISCA 2016).

A weight of w bits takes ceil(w / cell bits) cells side by side; an input of a bits is fed in ceil(a / DAC bits)
slices, one a cycle. What is read at once is an operation unit of R x C cells (Yang et al., "Sparse ReRAM Engine", ISCA
2019; the whole crossbar in ISAAC): its R rows are summed on each of C columns, and the crossbar's ADCs convert C sums.
So of each row of what a layer reads, of depth K and with N outputs,

    groups of columns   G = ceil(N / floor(C / cells of a weight)),     crossbars   ceil(K / rows) * ceil(G C / columns)
    cycles              slices * ceil(min(K, rows) / R) * min(G, columns / C)
    conversions         slices * sum over crossbars of ceil(its part of K / R) * N * cells of a weight

and an ADC must resolve log2 R + DAC bits + cell bits - 1 bits (one more where both are above 1; one less where columns
are stored inverted if that makes their sums smaller: ISAAC, section V).
"""

from typing import ClassVar

import numpy as np
from pydantic import Field, model_validator

from backends.accelerators.accelerator import Accelerator, Description, Usage
from backends.accelerators.memory import Traffic
from backends.accelerators.quantities import Hertz, Joules
from backends.accelerators.workloads import FloatArray, Workloads, Zeros
from search_spaces.sections import Section


class Array(Section):
    """Cells, and the bits that each holds.

    Attributes:
        rows, columns: of a crossbar.
        cell_bits: of a cell.
        read_rows, read_columns: of an operation unit, what is read at once; by default the whole crossbar.
        inverted: whether columns are stored inverted where that saves the ADC a bit.
    """

    rows: int = Field(ge=1, le=65536)
    columns: int = Field(ge=1, le=65536)
    cell_bits: int = Field(ge=1, le=8)
    read_rows: int | None = Field(default=None, ge=1)
    read_columns: int | None = Field(default=None, ge=1)
    inverted: bool = False

    @property
    def unit(self) -> tuple[int, int]:
        """Rows and columns of an operation unit."""
        return self.read_rows or self.rows, self.read_columns or self.columns


class Converters(Section):
    """What turns sums into numbers.

    Attributes:
        bits: of an ADC.
        count: of ADCs, for each crossbar.
        rate: conversions a second of one.
        energy: of one conversion.
    """

    bits: int = Field(ge=1, le=32)
    count: int = Field(ge=1, le=65536)
    rate: Hertz
    energy: Joules


class CrossbarDescription(Description):
    """Crossbars; the clock is that of their reads.

    Attributes:
        array: a crossbar.
        crossbars: of the chip.
        dac_bits: of an input, fed at once.
        adc: what a crossbar's sums are converted by.
        drive_energy: of one row driven for one operation unit: DAC and input register.
        cell_energy: of one cell read.
        merge_energy: of one conversion's way into the sum: sample and hold, shift, add and register.
        shared_inputs: crossbars side by side that are fed by one read of the buffer.
        pipeline: cycles from the last slice read to the output written.
        copies: most copies of a layer's weights, which work on its rows side by side; as many as fit the chip.
        skips_blocks: whether rows whose weights of an operation unit are all zero are not stored: zeros of the kind
            `Zeros.BLOCKS`, taken to fill operation units.
        skips_activations: whether rows whose input is zero are left out of operation units.
    """

    array: Array
    crossbars: int = Field(ge=1)
    dac_bits: int = Field(ge=1, le=16)
    adc: Converters
    drive_energy: Joules
    cell_energy: Joules
    merge_energy: Joules = 0.0
    shared_inputs: int = Field(default=1, ge=1)
    pipeline: int = Field(default=0, ge=0)
    copies: int = Field(default=1, ge=1)
    skips_blocks: bool = False
    skips_activations: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> "CrossbarDescription":
        array, (rows, columns) = self.array, self.array.unit
        if array.rows % rows or array.columns % columns:
            raise ValueError(
                f"operation units tile a crossbar: {rows} x {columns} cells do not {array.rows} x {array.columns}"
            )
        cells = -(-self.weight_bits[-1] // array.cell_bits)
        if cells > columns:
            raise ValueError(
                f"a weight of {self.weight_bits[-1]} bits takes {cells} cells; only {columns} columns are read at once"
            )
        serial = self.dac_bits == 1 or array.cell_bits == 1
        needed = (rows - 1).bit_length() + self.dac_bits + array.cell_bits - serial - array.inverted
        if self.adc.bits < needed:
            raise ValueError(
                f"the sum of {rows} rows has {needed} bits, an ADC {self.adc.bits}; read fewer rows at once (read_rows)"
            )
        return self


class Crossbar(Accelerator[CrossbarDescription]):
    """Weights stay where they are written; each layer, and each group of a convolution, has crossbars of its own.

    The network as a whole is taken to fit, on more chips where it must; only a layer that does not fit one is refused.
    Writing cells is not modelled. Of zeros those of whole filters are never stored.
    """

    Sections: ClassVar[type[Description]] = CrossbarDescription
    levels: ClassVar[tuple[str, ...]] = ("buffer",)
    elements: ClassVar[tuple[str, ...]] = ("crossbars", "copies", "adc.count")

    def refusals(self, works: Workloads) -> list[str | None]:
        """Those of every accelerator, products of attention, and layers that need more crossbars than there are."""
        found = super().refusals(works)
        most = self.description.crossbars
        needed = _Mapping(self.description, self.fitted(works)).crossbars
        for index, (product, count) in enumerate(zip(works.product.tolist(), needed.tolist(), strict=True)):
            if found[index] is None and product:
                found[index] = "a product of two matrices that are computed; the cells hold weights, written once"
            elif found[index] is None and count > most:
                found[index] = f"its weights take {count:.0f} crossbars; the chip has {most}"
        return found

    def run(self, works: Workloads) -> Usage:
        """Cycles of reads; the buffer is read for each crossbar or those that share their inputs."""
        description = self.description
        mapping = _Mapping(description, works)
        rows = np.asarray(works.rows * works.steps, dtype=np.float64)
        copies = np.minimum(description.copies, description.crossbars // np.maximum(mapping.crossbars, 1))
        at_once = np.ceil(works.rows / np.maximum(copies, 1)) * works.steps
        energy = (
            mapping.conversions * (description.adc.energy + description.merge_energy)
            + mapping.drives * description.drive_energy
            + mapping.cells * description.cell_energy
        )
        feeds = mapping.depth * works.groups * np.ceil(mapping.across / description.shared_inputs)
        traffic = Traffic(
            rows * feeds * works.activation_bits, np.asarray(works.outputs * works.activation_bits, dtype=np.float64)
        )
        array = description.array
        read = mapping.slices * np.ceil(array.rows / array.unit[0]) * (array.columns // array.unit[1])
        read = read * _pace(description, np.asarray(array.unit[1], dtype=np.float64))
        return self.used(
            works,
            at_once * mapping.cycles,
            {"buffer": traffic},
            peak_macs_per_cycle=description.crossbars * array.rows * mapping.weights_across / read,
            effective_macs=rows * mapping.depth * mapping.columns * works.groups,
            overhead_cycles=np.asarray(description.pipeline * works.steps, dtype=np.float64),
            compute_j=rows * works.groups * energy,
        )


class _Mapping:
    """Where the weights of layers are, and what one row of each layer takes, arrays [N].

    Attributes:
        depth, columns: of the matrix that is stored of each group.
        slices: that an input is fed in.
        weights_across: weights of a row of a crossbar.
        across: crossbars side by side, of a group.
        crossbars: of all groups.
        cycles: that all crossbars take, working side by side.
        conversions, drives, cells: converted sums, driven rows of operation units, and read cells, of a group.
    """

    def __init__(self, description: CrossbarDescription, works: Workloads) -> None:
        array = description.array
        unit_rows, unit_columns = array.unit
        kept = np.where(works.zeros == Zeros.BLOCKS, works.weight_density, 1.0) if description.skips_blocks else 1.0
        stay = np.where(works.zeros == Zeros.FILTERS, works.weight_density, 1.0)
        self.depth: FloatArray = np.maximum(np.ceil(works.depth * kept), 1.0)
        self.columns: FloatArray = np.maximum(np.ceil(works.out_channels * stay), 1.0)
        self.slices = -(-works.activation_bits // description.dac_bits)
        cells = -(-works.weight_bits // array.cell_bits)
        together = np.maximum(unit_columns // cells, 1)  # weights of an operation unit
        groups = np.ceil(self.columns / together)
        units = array.columns // unit_columns
        self.weights_across = together * units
        self.across = np.ceil(groups / units)
        down = np.ceil(self.depth / array.rows)
        self.crossbars: FloatArray = works.groups * down * self.across
        active = works.activation_density if description.skips_activations else 1.0
        last = self.depth - (down - 1) * array.rows
        full_reads = np.ceil(np.minimum(self.depth, array.rows) * active / unit_rows)
        reads = (down - 1) * np.ceil(array.rows * active / unit_rows) + np.ceil(last * active / unit_rows)
        used = np.where(groups > 1, unit_columns, self.columns * cells)  # columns converted after one read
        pace = _pace(description, np.asarray(used, dtype=np.float64))
        self.cycles: FloatArray = self.slices * full_reads * np.minimum(groups, units) * pace
        self.conversions: FloatArray = self.slices * reads * self.columns * cells
        self.drives: FloatArray = self.slices * self.depth * active * groups
        self.cells: FloatArray = self.slices * self.depth * active * self.columns * cells


def _pace(description: CrossbarDescription, columns: FloatArray) -> FloatArray:
    """Cycles of one read: ADCs may take longer for its columns than the crossbar."""
    adc = description.adc
    return np.maximum(1.0, columns * description.clock / (adc.count * adc.rate))
