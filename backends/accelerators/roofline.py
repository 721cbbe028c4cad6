"""Roofline: CPU, GPU, DSP and what else is known by its peak and its bandwidths (Williams et al., CACM 2009)."""

from typing import ClassVar

import numpy as np
from pydantic import Field, field_validator

from backends.accelerators.accelerator import Accelerator, Description, Usage
from backends.accelerators.memory import Traffic
from backends.accelerators.quantities import MacsPerSecond, Seconds
from backends.accelerators.tiling import Buffers, Offchip, Operands, least_traffic
from backends.accelerators.workloads import FloatArray, Workloads
from search_spaces.errors import InputError


class RooflineDescription(Description):
    """What a roofline is drawn from.

    Attributes:
        peak: multiply-accumulates a second by the bits of the wider operand; bits that are not named run as the next.
        launch: seconds before each layer starts: a kernel's launch.
    """

    peak: dict[int, MacsPerSecond] = Field(min_length=1)
    launch: Seconds = 0.0

    @field_validator("peak")
    @classmethod
    def _falling(cls, peak: dict[int, float]) -> dict[int, float]:
        rates = [rate for _, rate in sorted(peak.items())]
        if rates != sorted(rates, reverse=True):
            raise ValueError("more bits are never faster: the peaks must not rise with the bits")
        return peak


class Roofline(Accelerator[RooflineDescription]):
    """The slower of arithmetic at its peak and of each level's least traffic, and the launch."""

    Sections: ClassVar[type[Description]] = RooflineDescription
    levels: ClassVar[tuple[str, ...]] = ("dram",)
    optional_levels: ClassVar[tuple[str, ...]] = ("l3", "l2", "l1")
    elements: ClassVar[tuple[str, ...]] = ("peak",)

    def refusals(self, works: Workloads) -> list[str | None]:
        """Those of every accelerator, and layers whose smallest tile is larger than a cache."""
        found = super().refusals(works)
        for name, moved in self._offchip(self.fitted(works)).items():
            found = [
                reason or (None if fits else f"its smallest tile does not fit the level {name!r}")
                for reason, fits in zip(found, moved.fits.tolist(), strict=True)
            ]
        return found

    def run(self, works: Workloads) -> Usage:
        """By level: what passes between it and all that is larger."""
        peak = self._peak(works) / self.description.clock
        traffic = {name: Traffic(moved.read, moved.written) for name, moved in self._offchip(works).items()}
        launch = np.asarray(self.description.launch * self.description.clock * works.steps, dtype=np.float64)
        return self.used(works, works.macs / peak, traffic, peak_macs_per_cycle=peak, overhead_cycles=launch)

    def _peak(self, works: Workloads) -> FloatArray:
        bits, rates = (np.array(side) for side in zip(*sorted(self.description.peak.items()), strict=True))
        widest = np.maximum(works.weight_bits, works.activation_bits)
        if len(works) and widest.max() > bits[-1]:
            raise InputError(f"no peak is known for {widest.max()} bits; the largest is for {bits[-1]}")
        return np.asarray(rates[np.searchsorted(bits, widest)], dtype=np.float64)

    def _offchip(self, works: Workloads) -> dict[str, Offchip]:
        """Bits that pass a level's outer side: the least that the next smaller level, as a buffer, allows."""
        order = [name for name in ("dram", "l3", "l2", "l1") if name in self.memories]
        operands = Operands(works.weight_bits, works.activation_bits, works.activation_bits)
        inner = [self.memories[name].usable_bits for name in order[1:]] + [np.inf]
        return {
            name: least_traffic(works, Buffers(shared=size), operands)
            for name, size in zip(order, inner, strict=True)
            if name == "dram" or np.isfinite(size)
        }
