"""Bit fusion: a systolic array of multipliers that split into narrower ones (Sharma et al., ISCA 2018).

A fusion unit multiplies one pair of 8-bit numbers a cycle, or (8 / w) * (8 / a) pairs of w and a bits, and sums what it
multiplies; it computes with 1 bit as with 2, and stores 1. A row of units takes channels in, a column gives a channel
out:

    cycles = groups * P * ceil(N / columns) * kernel * ceil(C / (rows * pairs))

Where channels are so few that they leave most of a row idle, as those of an image, all pixels of a kernel are laid out
in the row (im2col): kernel * ceil(C / ..) becomes ceil(C * kernel / ..). Numbers of 16 bits take two passes for each
operand that has them. Zeros are multiplied as any other number.
"""

from typing import ClassVar

import numpy as np
from pydantic import Field, model_validator

from backends.accelerators.accelerator import Accelerator, Description, Usage
from backends.accelerators.memory import Traffic
from backends.accelerators.quantities import Joules
from backends.accelerators.tiling import Buffers, Offchip, Operands, least_traffic
from backends.accelerators.workloads import FloatArray, IntArray, Workloads

UNIT_BITS = 8
"""Of both numbers that a fusion unit multiplies as a whole."""
BRICK_BITS = 2
"""Of both numbers that its smallest part multiplies."""
FUSED_BITS = (1, 2, 4, 8, 16)


class BitFusionDescription(Description):
    """An array of fusion units and its three buffers.

    Attributes:
        rows, columns: fusion units; a row takes channels in, a column gives a channel out.
        unrolled_channels: layers of at most so many channels a group are laid out with the pixels of the kernel in a
            row. It happens on the way into the input buffer: memory is read as without it.
        cycle_energy: of the whole array in a cycle that it works; without it each multiply-accumulate has its energy.
        sums_in_memory: sums lie in memory with all of their bits, and those of a tile are read before its first
            product, zero or not, as Bit Fusion's simulator does; else outputs leave with the bits of activations.
    """

    rows: int = Field(ge=1, le=4096)
    columns: int = Field(ge=1, le=4096)
    unrolled_channels: int = Field(default=0, ge=0)
    cycle_energy: Joules | None = None
    sums_in_memory: bool = False

    @model_validator(mode="after")
    def _fused(self) -> "BitFusionDescription":
        for bits in (*self.weight_bits, *self.activation_bits):
            if bits not in FUSED_BITS:
                known = ", ".join(map(str, FUSED_BITS))
                raise ValueError(f"fusion units have numbers of {known} bits, got {bits}; leave it out")
        return self


class BitFusion(Accelerator[BitFusionDescription]):
    """The slower of the array and of the least traffic that the buffers allow.

    Each product reads its weight and its input from the buffers, as in the published counts of accesses. Costs fall
    with channels by the units' rows and columns, with bits from one supported number to the next.
    """

    Sections: ClassVar[type[Description]] = BitFusionDescription
    levels: ClassVar[tuple[str, ...]] = ("dram", "weights", "inputs", "outputs")
    elements: ClassVar[tuple[str, ...]] = ("rows", "columns")

    def refusals(self, works: Workloads) -> list[str | None]:
        """Those of every accelerator, and layers whose smallest tile is larger than a buffer."""
        fits = self._offchip(self.fitted(works)).fits.tolist()
        return [
            reason or (None if fitting else "its smallest tile does not fit the buffers")
            for reason, fitting in zip(super().refusals(works), fits, strict=True)
        ]

    def run(self, works: Workloads) -> Usage:
        """By level: memory outside of the chip, and what goes into and out of each buffer."""
        description = self.description
        offchip = self._offchip(works)
        stored = works.outputs * float(description.accumulator_bits)  # once, with all bits
        loaded = stored if description.sums_in_memory else 0.0 * stored
        sums = stored + offchip.partial_sums / 2  # of all tiles, one way
        weights, inputs = (
            np.asarray(works.macs * bits, dtype=np.float64) for bits in (works.weight_bits, works.activation_bits)
        )
        traffic = {
            "dram": Traffic(offchip.read + loaded, offchip.written),
            "weights": Traffic(weights, offchip.weights),
            "inputs": Traffic(inputs, offchip.inputs),
            "outputs": Traffic(2 * sums, 2 * sums),  # to the array and to memory, and from both
        }
        cycles = self._compute_cycles(works)
        energy = None if description.cycle_energy is None else cycles * description.cycle_energy
        peak = description.rows * description.columns * self._pairs(works) / self._passes(works)
        return self.used(works, cycles, traffic, peak_macs_per_cycle=peak, compute_j=energy)

    def _compute_cycles(self, works: Workloads) -> FloatArray:
        in_row = self.description.rows * self._pairs(works)
        unrolled = works.in_channels <= self.description.unrolled_channels
        depth = np.where(unrolled, -(-works.depth // in_row), works.kernel * -(-works.in_channels // in_row))
        columns = -(-works.out_channels // self.description.columns)
        steps = works.groups * works.rows * works.steps
        return np.asarray(steps * columns * depth * self._passes(works), dtype=np.float64)

    def _pairs(self, works: Workloads) -> IntArray:
        """Pairs of numbers that a fusion unit multiplies at once."""
        weights, activations = (
            UNIT_BITS // np.clip(bits, BRICK_BITS, UNIT_BITS) for bits in (works.weight_bits, works.activation_bits)
        )
        return np.asarray(weights * activations)

    def _passes(self, works: Workloads) -> IntArray:
        """Passes over numbers that are wider than a unit."""
        return np.asarray(-(-works.weight_bits // UNIT_BITS) * -(-works.activation_bits // UNIT_BITS))

    def _offchip(self, works: Workloads) -> Offchip:
        sums = self.description.accumulator_bits
        outputs = sums if self.description.sums_in_memory else works.activation_bits
        sizes = (self.memories[name].usable_bits for name in ("weights", "inputs", "outputs"))
        return least_traffic(works, Buffers(*sizes), Operands(works.weight_bits, works.activation_bits, outputs, sums))
