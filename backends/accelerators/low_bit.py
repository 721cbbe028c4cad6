"""Binary and ternary arrays: weights of 1 or 2 bits, so that a multiplication is a choice of sign.

A window slides over the image; in a cycle `channels` input channels under a window of side s meet their weights for
`windows[s]` output channels (YodaNN: Andri et al., TCAD 2018; XNORBIN and XNE, which have one window only, are of the
same kind). A convolution takes

    pixels * ceil(C / channels, rounded up to `interleaved`) * ceil(N / windows[s]) * parts of its kernel

cycles, s the smallest window over its kernel; a kernel larger than all is run in parts by the largest. The image passes
in tiles of as many rows as the level "image" holds; rows that neighbouring tiles share are run twice.
"""

from typing import ClassVar

import numpy as np
from pydantic import Field, field_validator

from backends.accelerators.accelerator import Accelerator, Description, Usage
from backends.accelerators.energy import Technology
from backends.accelerators.memory import Traffic
from backends.accelerators.quantities import Watts
from backends.accelerators.workloads import FloatArray, IntArray, Workloads
from search_spaces.errors import InputError


class LowBitDescription(Description):
    """What the array is made of.

    Attributes:
        channels: input channels in a cycle.
        interleaved: cycles that a pixel takes at least, and of which it takes a multiple: so many turns input channels
            have, also where there are fewer.
        windows: output channels in a cycle by the side of the window; a larger window has no more of them.
        power: of the array and its memories with the largest window at work, at this clock; with others by their share
            of operators, whether those do something of use or not. Without it the technology's energies count.
        sums_on_chip: whether sums wait on the chip until all input channels are through; else those of each round of
            `interleaved` turns leave it, to be added up outside.
    """

    channels: int = Field(default=1, ge=1, le=65536)
    interleaved: int = Field(default=1, ge=1, le=65536)
    windows: dict[int, int] = Field(min_length=1)
    power: Watts | None = None
    sums_on_chip: bool = True

    @field_validator("windows")
    @classmethod
    def _falling(cls, windows: dict[int, int]) -> dict[int, int]:
        counts = [count for _, count in sorted(windows.items())]
        if min(*windows, *counts) < 1 or max(*windows, *counts) > 65536:
            raise ValueError(f"windows are output channels from 1 to 65536 by sides from 1, got {windows}")
        if counts != sorted(counts, reverse=True):
            raise ValueError(f"a larger window has no more output channels at a time, got {windows}")
        return windows


class LowBitArray(Accelerator[LowBitDescription]):
    """Convolutions by sliding windows; all else as convolutions of 1 x 1, which the smallest window runs.

    Input channels are rounded up to whole rounds, output channels to what runs at a time; groups, heads and time steps
    run one after the other. Zeros save nothing. More input channels at a time leave fewer rows in the level "image".
    """

    Sections: ClassVar[type[Description]] = LowBitDescription
    levels: ClassVar[tuple[str, ...]] = ("dram", "weights")
    optional_levels: ClassVar[tuple[str, ...]] = ("image",)
    elements: ClassVar[tuple[str, ...]] = ("windows",)

    def __init__(self, description: LowBitDescription, technology: Technology) -> None:
        super().__init__(description, technology)
        sides = sorted(description.windows)
        self._sides = np.array(sides, dtype=np.int64)
        self._counts = np.array([description.windows[side] for side in sides], dtype=np.int64)
        self._operators = self._sides**2 * self._counts * description.channels
        self._rows = np.inf
        if "image" in self.memories:
            row = sides[-1] * description.channels * description.interleaved * description.activation_bits[-1]
            self._rows = self.memories["image"].usable_bits // row
            if self._rows < sides[-1]:
                raise InputError(
                    f"the level 'image' is smaller than one tile: it holds {int(self._rows)} rows of pixels under a "
                    f"window of {sides[-1]} x {sides[-1]}; enlarge it"
                )

    def run(self, works: Workloads) -> Usage:
        """By level: what passes between chip and memory; the image is written as it comes and read window by window."""
        description = self.description
        window, parts, pixels, tiled = self._windows(works)
        side, count = self._sides[window], self._counts[window]
        turns = -(-works.in_channels // description.channels)
        rounds = -(-turns // description.interleaved)
        blocks = -(-works.out_channels // count)
        repeats = works.groups * works.steps * parts
        cycles = pixels * rounds * description.interleaved * blocks * repeats
        operators = self._operators[window]
        energy = None
        if description.power is not None:
            each = description.power / description.clock / self._operators[-1]
            energy = cycles * operators * each

        image = np.asarray(works.inputs * tiled * blocks * parts * works.activation_bits, dtype=np.float64)
        weights = np.asarray(works.weights * works.weight_bits, dtype=np.float64)
        resident = weights <= self.memories["weights"].usable_bits
        weights = weights * np.where(resident, 1.0, works.steps)
        again = np.zeros_like(rounds) if description.sums_on_chip else rounds * parts - 1
        sums = works.outputs * again * float(description.accumulator_bits)
        outputs = np.asarray(works.outputs * works.activation_bits, dtype=np.float64)
        traffic = {
            "dram": Traffic(image + weights + sums, outputs + sums),
            "weights": Traffic(weights, weights),
        }
        if "image" in self.memories:
            traffic["image"] = Traffic(cycles * side * description.channels * works.activation_bits, image)
        return self.used(works, cycles, traffic, peak_macs_per_cycle=float(self._operators.max()), compute_j=energy)

    def _windows(self, works: Workloads) -> tuple[IntArray, IntArray, FloatArray, FloatArray]:
        """The window of each layer by its number, in how many parts it runs the kernel, pixels of all tiles with those
        that are run twice, and how often the image is read on their account."""
        axes = (
            (works.kernel_height, works.dilation_height),
            (works.kernel_width, works.dilation_width),
        )
        widest = np.max([(kernel - 1) * dilation + 1 for kernel, dilation in axes], axis=0)
        window = np.minimum(np.searchsorted(self._sides, widest), len(self._sides) - 1)
        taps = [np.minimum(kernel, (self._sides[window] - 1) // dilation + 1) for kernel, dilation in axes]
        parts = -(-works.kernel_height // taps[0]) * -(-works.kernel_width // taps[1])

        span = (taps[0] - 1) * works.dilation_height + 1
        shared = np.maximum(span - works.stride_height, 0)
        tiles = np.ceil(np.maximum(works.read_height - shared, 1) / (self._rows - shared))
        twice = (np.maximum(tiles, 1) - 1) * shared
        lines = works.out_height + np.ceil(twice / works.stride_height)
        pixels = works.batch * lines * works.out_width
        return window, parts, pixels, 1 + twice / works.read_height
