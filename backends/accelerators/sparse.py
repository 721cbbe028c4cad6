"""Accelerators that skip zeros, or save energy on them: of weights, of values between layers, of both.

Which zeros among the weights save anything depends on where they are (`SparseDescription.zeros`): hardware for N:M
gains nothing from others. Zero filters shrink the layer to those that are left, whole ones. Cycles are those of
`sparse_dataflows`; what is stored has its index (`sparse_formats`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator, model_validator

from backends.accelerators import sparse_dataflows
from backends.accelerators.accelerator import Accelerator, Description, Usage
from backends.accelerators.energy import Technology
from backends.accelerators.memory import Traffic
from backends.accelerators.sparse_dataflows import Dataflow, Lanes, is_linear
from backends.accelerators.sparse_formats import POINTER_BITS, Format, stored_bits
from backends.accelerators.tiling import Buffers, Offchip, Operands, least_traffic
from backends.accelerators.workloads import FloatArray, IntArray, Workloads, Zeros
from search_spaces.errors import InputError

Place = Literal["anywhere", "blocks", "filters", "windows"]
Kind = Literal["convolution", "linear", "product"]
Operand = Literal["weights", "inputs", "outputs"]
OPERANDS: tuple[Operand, ...] = ("weights", "inputs", "outputs")
_FLOWS: Mapping[str, Dataflow] = {
    "columns": sparse_dataflows.columns,
    "dot_products": sparse_dataflows.dot_products,
    "cartesian": sparse_dataflows.cartesian,
}
_KINDS = {"convolution": "convolution", "linear": "linear layer", "product": "product of two computed matrices"}


class SparseDescription(Description):
    """Hardware that exploits zeros.

    Attributes:
        dataflow: how products with zeros are skipped, see `sparse_dataflows`.
        lanes: that work side by side, each on outputs of its own.
        rows: numbers of parts that lanes may be divided into, each with rows (pixels, images) of its own.
        multipliers: of a lane, by the bits of the wider operand; bits that are not named run as the next. Of a
            cartesian product those along the weights.
        values: of a lane that all its multipliers along the weights take at once, in a cartesian product.
        queue: slices of work (columns, outputs, groups of outputs) that a lane may be ahead of the slowest.
        selector: numbers of a dot product that are looked through in a cycle.
        accumulators: partial sums of a lane, of all lanes together where memory is shared.
        group: most output channels that a lane works on at once, in a cartesian product.
        zeros: places of zeros among the weights that cost no time; others cost as much as numbers.
        window: N and M, where only N:M is skipped.
        shared_index: whether all lanes have their zeros at the same places, so that none waits for another.
        activation_zeros: whether zeros that are read cost time and energy ("stay"), time alone ("gated"), or nothing.
        weight_format, activation_format: in which they are stored where that is smaller, see `sparse_formats`.
        index_bits: of an index entry.
        index_shared: weights that share an index entry.
        kinds: of layers that it runs; others are refused.
        largest_kernel: along an axis.
        on_chip: what never leaves the chip if it fits its buffer; weights that do not fit are then refused.
    """

    dataflow: Literal["columns", "dot_products", "cartesian"]
    lanes: int = Field(ge=1)
    rows: list[int] = Field(default=[1], min_length=1)
    multipliers: dict[int, int] = Field(min_length=1)
    values: int = Field(default=1, ge=1)
    queue: int = Field(default=1, ge=1)
    selector: int | None = Field(default=None, ge=1)
    accumulators: int | None = Field(default=None, ge=1)
    group: int = Field(default=1, ge=1)
    zeros: list[Place] = Field(default=[])
    window: tuple[int, int] | None = Field(default=None, strict=False)
    shared_index: bool = False
    activation_zeros: Literal["stay", "gated", "skipped"] = "stay"
    weight_format: Format = "dense"
    activation_format: Format = "dense"
    index_bits: int = Field(default=4, ge=1, le=16)
    index_shared: int = Field(default=1, ge=1)
    kinds: list[Kind] = Field(default=["convolution", "linear", "product"], min_length=1)
    largest_kernel: int | None = Field(default=None, ge=1)
    on_chip: list[Operand] = Field(default=[])

    @field_validator("multipliers")
    @classmethod
    def _falling(cls, multipliers: dict[int, int]) -> dict[int, int]:
        counts = [count for _, count in sorted(multipliers.items())]
        if min(counts) < 1 or counts != sorted(counts, reverse=True):
            raise ValueError(f"multipliers are at least 1 and never more for more bits, got {multipliers}")
        return multipliers

    @field_validator("window")
    @classmethod
    def _part(cls, window: tuple[int, int] | None) -> tuple[int, int] | None:
        if window is not None and not 0 < window[0] < window[1]:
            raise ValueError(f"of a window [N, M] N is from 1 to M - 1, got {list(window)}")
        return window

    @model_validator(mode="after")
    def _fitting(self) -> "SparseDescription":
        if min(self.rows) < 1 or min(self.rows) > self.lanes:
            raise ValueError(f"lanes are divided into 1 to {self.lanes} parts, got rows {self.rows}")
        wider = max(self.weight_bits[-1], self.activation_bits[-1])
        if max(self.multipliers) < wider:
            raise ValueError(
                f"there are operands of {wider} bits, but multipliers only for up to {max(self.multipliers)}"
            )
        if self.window is not None and self.zeros != ["windows"]:
            raise ValueError(f"a window is of hardware that skips zeros in windows alone, got zeros {self.zeros}")
        return self


@dataclass(frozen=True)
class _Bits:
    """Mean bits of a number as stored, arrays [N]."""

    weight: FloatArray
    value: FloatArray
    output: FloatArray


class SparseArray(Accelerator[SparseDescription]):
    """Lanes that skip products with zeros, and wait for each other.

    Not modelled: zeros that cluster (all fall at random, blocks included), conflicts at the accumulators of a cartesian
    product, zeros among outputs that are not written.
    """

    Sections: ClassVar[type[Description]] = SparseDescription
    levels: ClassVar[tuple[str, ...]] = ("dram",)
    optional_levels: ClassVar[tuple[str, ...]] = (*OPERANDS, "pointers", "shared")
    elements: ClassVar[tuple[str, ...]] = ("lanes", "multipliers", "values")

    def __init__(self, description: SparseDescription, technology: Technology) -> None:
        super().__init__(description, technology)
        apart = [level for level in OPERANDS if level in self.memories]
        if "shared" in self.memories and apart:
            raise InputError(f"a buffer is shared or there is one for each operand; leave out 'shared' or {apart}")
        for operand in description.on_chip:
            if operand not in self.memories:
                raise InputError(f"{operand} on the chip need a memory level {operand!r}; add it to memories")

    def refusals(self, works: Workloads) -> list[str | None]:
        """Those of every accelerator; kinds of layers that it has no way to run; what fits no buffer."""
        found = super().refusals(works)
        fitted = self.fitted(works)
        shrunk, weights = self._shrunk(fitted)
        kinds = np.where(works.product > 0, "product", np.where(is_linear(works), "linear", "convolution")).tolist()
        kernels = np.maximum(works.kernel_height, works.kernel_width).tolist()
        held = self._held(shrunk, weights).tolist()
        fits = self._offchip(shrunk, weights).fits.tolist()
        largest = self.description.largest_kernel or max(kernels, default=1)
        for row, (kind, kernel) in enumerate(zip(kinds, kernels, strict=True)):
            if found[row] is not None:
                continue
            if kind not in self.description.kinds:
                found[row] = f"it is a {_KINDS[kind]}; the hardware runs {', '.join(self.description.kinds)} alone"
            elif kernel > largest:
                found[row] = f"a kernel of {kernel}; the hardware has at most {largest}"
            elif "weights" in self.description.on_chip and not held[row]:
                found[row] = "its weights or values do not fit the chip, which has no other place for them"
            elif not fits[row]:
                found[row] = "its smallest tile does not fit the buffers"
        return found

    def run(self, works: Workloads) -> Usage:
        """See the module."""
        full, (works, weights) = works, self._shrunk(works)
        skipped = self.description.activation_zeros == "skipped"
        values = works.activation_density if skipped else np.ones(len(works))
        lanes = self._lanes(works)
        done = works.macs * weights * self._worth(works)
        peak = self.description.lanes * lanes.multipliers * self.description.values
        return self.used(
            full,
            _FLOWS[self.description.dataflow](works, weights, values, lanes),
            self._traffic(works, weights),
            peak_macs_per_cycle=np.asarray(peak, dtype=np.float64),
            effective_macs=np.asarray(done, dtype=np.float64),
        )

    def _shrunk(self, works: Workloads) -> tuple[Workloads, FloatArray]:
        """The layers without their zero filters, and the share of their weights that costs time."""
        description = self.description
        gone = (works.zeros == Zeros.FILTERS) & ("filters" in description.zeros)
        left = np.ceil(works.out_channels * works.weight_density * (1 - 1e-12))
        outputs = np.where(gone, np.maximum(left, 1), works.out_channels)
        places = {Zeros.ANYWHERE: "anywhere", Zeros.BLOCKS: "blocks", Zeros.WINDOWS: "windows"}
        profits = np.isin(works.zeros, [zeros for zeros, place in places.items() if place in description.zeros])
        density = np.where(profits & (works.product == 0), works.weight_density, 1.0)
        if description.window is not None:
            kept, window = description.window
            fits = (window % np.maximum(works.window, 1) == 0) & (works.weight_density <= kept / window + 1e-9)
            density = np.where(profits & fits, kept / window, 1.0)
        return works.replace(out_channels=outputs), np.asarray(density, dtype=np.float64)

    def _worth(self, works: Workloads) -> FloatArray:
        """Share of the values read that are multiplied."""
        return works.activation_density if self.description.activation_zeros != "stay" else np.ones(len(works))

    def _lanes(self, works: Workloads) -> Lanes:
        description = self.description
        return Lanes(
            count=description.lanes,
            rows=tuple(description.rows),
            multipliers=self._multipliers(works),
            values=description.values,
            queue=description.queue,
            selector=description.selector,
            shared_index=description.shared_index,
            index_bits=description.index_bits if description.weight_format == "run_length" else None,
            accumulators=description.accumulators,
            group=description.group,
        )

    def _multipliers(self, works: Workloads) -> IntArray:
        bits, counts = (np.array(side) for side in zip(*sorted(self.description.multipliers.items()), strict=True))
        widest = np.maximum(works.weight_bits, works.activation_bits)
        return np.asarray(counts[np.searchsorted(bits, widest)])

    def _stored(self, works: Workloads, weights: FloatArray) -> _Bits:
        """A lane's part of a column is coded for itself, as is each row."""
        description = self.description
        by_columns = description.dataflow == "columns"
        size = -(-works.out_channels // (description.lanes // min(description.rows))) if by_columns else works.depth
        index, shared = description.index_bits, description.index_shared
        coded = stored_bits(description.weight_format, works.weight_bits, weights, size, index, shared)
        read = works.in_channels * works.read_height * works.read_width
        value = stored_bits(description.activation_format, works.activation_bits, works.activation_density, read, index)
        return _Bits(coded, value, works.activation_bits.astype(np.float64))

    def _operands(self, bits: _Bits) -> Operands:
        return Operands(bits.weight, bits.value, bits.output, self.description.accumulator_bits)

    def _offchip(self, works: Workloads, weights: FloatArray) -> Offchip:
        """Bits between the chip and its memory: what passes once where all that may stay on the chip fits, else the
        least of all tilings."""
        bits = self._stored(works, weights)
        sizes = {name: self.memories[name].usable_bits for name in (*OPERANDS, "shared") if name in self.memories}
        tiled = least_traffic(works, Buffers(**sizes), self._operands(bits))
        if not self.description.on_chip:
            return tiled
        moved = {
            "weights": works.weights * works.steps * bits.weight,
            "inputs": works.inputs * bits.value,
            "outputs": works.outputs * bits.output,
        }
        held = self._held(works, weights)
        for name in self.description.on_chip:
            moved[name] = np.zeros(len(works))
        nothing = np.zeros(len(works))
        once = Offchip(moved["weights"], moved["inputs"], nothing, moved["outputs"], held)
        take = held & (~tiled.fits | (once.total < tiled.total))
        names = ("weights", "inputs", "partial_sums", "outputs", "fits")
        return Offchip(*(np.where(take, getattr(once, name), getattr(tiled, name)) for name in names))

    def _held(self, works: Workloads, weights: FloatArray) -> npt.NDArray[np.bool_]:
        """Whether all that may stay on the chip fits it."""
        stored = self._stored(works, weights)
        bits = {
            "weights": works.weights * stored.weight,
            "inputs": works.inputs / works.steps * stored.value,
            "outputs": works.outputs / works.steps * stored.output,
        }
        fits = [bits[name] <= self.memories[name].usable_bits for name in self.description.on_chip]
        return np.asarray(np.all([np.ones(len(works), dtype=np.bool_), *fits], axis=0))

    def _traffic(self, works: Workloads, weights: FloatArray) -> dict[str, Traffic]:
        """Of each level. On the chip each product reads its weight, but for those that share it in a cartesian product;
        values are read once for all lanes, again for each round of outputs."""
        description = self.description
        offchip = self._offchip(works, weights)
        found = {"dram": Traffic(offchip.read, offchip.written)}
        stored = self._stored(works, weights)
        nothing = np.zeros(len(works))
        if "shared" in self.memories:
            sums = np.inf if description.accumulators is None else description.accumulators
            moved = least_traffic(works, Buffers(outputs=sums * description.accumulator_bits), self._operands(stored))
            found["shared"] = Traffic(moved.read, moved.written)
        worth = self._worth(works)
        reads = {
            "weights": works.macs * worth * stored.weight / description.values,
            "inputs": self._values_read(works) * stored.value,
        }
        found |= {name: Traffic(bits, nothing) for name, bits in reads.items() if name in self.memories}
        if "outputs" in self.memories:
            found["outputs"] = Traffic(nothing, np.asarray(works.outputs * stored.output))
        if "pointers" in self.memories:
            lanes = np.minimum(works.out_channels, description.lanes)
            columns = works.rows * works.depth * works.groups * works.steps * worth
            found["pointers"] = Traffic(columns * lanes * 2 * POINTER_BITS, nothing)
        return found

    def _values_read(self, works: Workloads) -> FloatArray:
        """Numbers that the lanes get, zeros included."""
        if self.description.dataflow == "columns":
            return np.asarray(works.inputs, dtype=np.float64)
        if self.description.dataflow == "cartesian":
            return np.asarray(works.inputs * -(-works.out_channels // self.description.group), dtype=np.float64)
        rounds = -(-works.out_channels // self.description.lanes)
        return np.asarray(works.rows * works.depth * works.groups * works.steps * rounds, dtype=np.float64)
