"""Roofline: CPU, GPU, DSP and what else is known by its peak and its bandwidths (Williams et al., CACM 2009)."""

from itertools import pairwise
from typing import ClassVar

import numpy as np
from pydantic import Field, model_validator

from backends.accelerators.accelerator import Accelerator, Description, Usage
from backends.accelerators.memory import Traffic
from backends.accelerators.quantities import MacsPerSecond, Seconds
from backends.accelerators.tiling import Buffers, Offchip, Operands, least_traffic
from backends.accelerators.workloads import FloatArray, Workloads


class RooflineDescription(Description):
    """What a roofline is drawn from.

    Attributes:
        peak: multiply-accumulates a second by the bits of the wider operand; bits that are not named run as the next.
        launch: seconds before each layer starts: a kernel's launch.
    """

    peak: dict[int, MacsPerSecond] = Field(min_length=1)
    launch: Seconds = 0.0

    @model_validator(mode="after")
    def _peaks(self) -> "RooflineDescription":
        rates = [rate for _, rate in sorted(self.peak.items())]
        if rates != sorted(rates, reverse=True):
            raise ValueError("more bits are never faster: the peaks must not rise with the bits")
        if min(self.peak) < 1 or max(self.peak) < max(self.weight_bits[-1], self.activation_bits[-1]):
            raise ValueError(f"there is a peak for the most bits that the hardware has, got those of {[*self.peak]}")
        return self


class Roofline(Accelerator[RooflineDescription]):
    """The slower of arithmetic at its peak and of each level's least traffic, and the launch."""

    Sections: ClassVar[type[Description]] = RooflineDescription
    levels: ClassVar[tuple[str, ...]] = ("dram",)
    optional_levels: ClassVar[tuple[str, ...]] = ("l3", "l2", "l1")
    elements: ClassVar[tuple[str, ...]] = ("peak",)

    def refusals(self, works: Workloads) -> list[str | None]:
        """Those of every accelerator, and layers whose smallest tile is larger than a cache."""
        found = super().refusals(works)
        moved = self._offchip(self.fitted(works))
        for (_, inner), bits in zip(pairwise(self._order), moved.values(), strict=False):
            found = [
                reason or (None if fits else f"its smallest tile does not fit the level {inner!r}")
                for reason, fits in zip(found, bits.fits.tolist(), strict=True)
            ]
        return found

    def run(self, works: Workloads) -> Usage:
        """By level: what passes between it and all that is smaller."""
        peak = self._peak(works) / self.description.clock
        traffic = {name: Traffic(moved.read, moved.written) for name, moved in self._offchip(works).items()}
        launch = np.asarray(self.description.launch * self.description.clock * works.steps, dtype=np.float64)
        return self.used(works, works.macs / peak, traffic, peak_macs_per_cycle=peak, overhead_cycles=launch)

    def _peak(self, works: Workloads) -> FloatArray:
        bits, rates = (np.array(side) for side in zip(*sorted(self.description.peak.items()), strict=True))
        widest = np.maximum(works.weight_bits, works.activation_bits)
        return np.asarray(rates[np.searchsorted(bits, widest)], dtype=np.float64)

    @property
    def _order(self) -> list[str]:
        """Levels from the outermost to the innermost."""
        return [name for name in ("dram", "l3", "l2", "l1") if name in self.memories]

    def _offchip(self, works: Workloads) -> dict[str, Offchip]:
        """Bits that pass a level's inner side: the least that the next smaller level, as a buffer, allows; of the
        innermost, all numbers once."""
        operands = Operands(works.weight_bits, works.activation_bits, works.activation_bits)
        inner = [self.memories[name].usable_bits for name in self._order[1:]] + [np.inf]
        return {
            name: least_traffic(works, Buffers(shared=size), operands)
            for name, size in zip(self._order, inner, strict=True)
        }
