"""What operations and accesses cost in a technology, where a description does not say it itself."""

import math
from collections.abc import Mapping
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator, Field, field_validator

from backends.accelerators.quantities import Bits, Joules, JoulesPerBit
from backends.accelerators.workloads import FloatArray, IntArray
from search_spaces.sections import Section

FLOAT_BITS = 32
"""From here on numbers are floats: no integer multiplier of an accelerator is so wide."""


def _points(value: object) -> object:
    """{"8 KiB": "0.16 pJ/bit", ...} as pairs, by size."""
    if not isinstance(value, Mapping) or not value:
        raise ValueError(
            f"SRAM energies are a mapping of sizes to energies, such as '8 KiB: 0.16 pJ/bit', got {value!r}"
        )
    return [{"size": size, "energy": energy} for size, energy in value.items()]


class AccessEnergy(Section):
    """Energy of reading a bit from an SRAM of a size."""

    size: Bits
    energy: JoulesPerBit


class Technology(Section):
    """Energies of a process.

    Attributes:
        name: of the technology.
        source: where its figures are from.
        multiply_8: of two integers of 8 bits; it grows with the product of the bits (Horowitz 2014: 0.2 and 3.1 pJ for
            8 and 32).
        add_32: of two integers of 32 bits, what products are summed in.
        multiply_float, add_float: of two float32 numbers.
        sram: energy a bit by size; between the sizes it is interpolated, logarithmically on both axes.
        register: energy a bit of a register beside an arithmetic unit.
        dram: energy a bit of memory outside of the chip.
    """

    name: str
    source: str
    multiply_8: Joules
    add_32: Joules
    multiply_float: Joules
    add_float: Joules
    sram: Annotated[list[AccessEnergy], BeforeValidator(_points)] = Field(min_length=1)
    register_: JoulesPerBit = Field(alias="register")
    dram: JoulesPerBit

    @field_validator("sram")
    @classmethod
    def _rising(cls, sram: list[AccessEnergy]) -> list[AccessEnergy]:
        points = sorted((point.size, point.energy) for point in sram)
        sizes, energies = zip(*points, strict=True)
        if len(set(sizes)) < len(sizes) or energies[0] == 0 or sorted(energies) != list(energies):
            raise ValueError("of two SRAMs the larger one takes at least as much energy, above 0; give each size once")
        return sram

    def mac_j(self, weight_bits: IntArray, activation_bits: IntArray) -> FloatArray:
        """Joules of one multiply-accumulate."""
        whole = np.maximum(weight_bits, activation_bits) >= FLOAT_BITS
        integer = self.multiply_8 * weight_bits * activation_bits / 64.0 + self.add_32
        most = self.multiply_float + self.add_float
        return np.where(whole, most, np.minimum(integer, most))

    def sram_j_per_bit(self, size_bits: float) -> float:
        """Joules of reading or writing a bit of an SRAM of that size; beyond the table its slope goes on."""
        points = sorted((point.size, point.energy) for point in self.sram)
        if len(points) == 1:
            return points[0][1]
        index = min(max(1, sum(size < size_bits for size, _ in points)), len(points) - 1)
        (small, low), (large, high) = points[index - 1], points[index]
        slope = math.log(high / low) / math.log(large / small)
        return float(low * (size_bits / small) ** slope)


def access_j_per_bit(technology: Technology, size_bits: float | None) -> float:
    """Joules of moving a bit at a memory level: an SRAM's by its size, DRAM's where it has none."""
    return technology.dram if size_bits is None else technology.sram_j_per_bit(size_bits)
