"""Bit-serial arrays: one bit of one operand, or of both, at a time, so that fewer bits take fewer cycles.

An array multiplies `rows` pixels (or images) by `columns` outputs, and sums `depth` products, in a cycle a bit:

    cycles = groups * ceil(P / rows) * ceil(N / columns) * ceil(K / depth) * bits

with bits = w * a where both operands are serial (BISMO: Umuroglu et al., FPL 2018), a where activations are (Stripes:
Judd et al., MICRO 2016) and w where weights are (UNPU: Lee et al., JSSC 2019). Sums do not leave the array before they
are done. So of one operand as much as its buffer holds stays there, and the other passes by: between chip and memory

    weights stay        W + A * ceil(W / buffer of weights)
    activations stay    A + W * ceil(A / buffer of activations)

pass, whichever is less, of each group. Zeros among weights or activations are multiplied as any other number.
"""

from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from backends.accelerators.accelerator import Accelerator, Description, Usage
from backends.accelerators.energy import Technology
from backends.accelerators.memory import Traffic
from backends.accelerators.workloads import IntArray, Workloads
from search_spaces.errors import InputError


class BitSerialDescription(Description):
    """An array and how it takes layers.

    Attributes:
        serial: operands that pass a bit at a time; the other has all of its bits in every cycle.
        rows: pixels, or images of a linear layer, at a time.
        columns: outputs at a time.
        depth: products that are summed in a cycle.
        one_bit_depth: those where weights have a single bit, if that is more.
        word: numbers along the depth, a bit of each, by which buffers are filled, the last word up to its end.
        depthwise_lanes: channels of a depthwise convolution that share the depth; by default each has it alone.
        images_apart: images of a convolution pass one after the other, each with its own last rows and with the weights
            anew; those of a linear layer share the rows.
        activations_on_chip: what layers pass on to each other does not go to memory.
    """

    serial: Literal["both", "weights", "activations"]
    rows: int = Field(ge=1, le=4096)
    columns: int = Field(ge=1, le=4096)
    depth: int = Field(ge=1, le=65536)
    one_bit_depth: int = Field(default=1, ge=1, le=65536)
    word: int = Field(default=1, ge=1, le=65536)
    depthwise_lanes: int = Field(default=1, ge=1)
    images_apart: bool = False
    activations_on_chip: bool = False

    @model_validator(mode="after")
    def _lanes_fit(self) -> "BitSerialDescription":
        if self.depthwise_lanes > min(self.depth, self.columns):
            raise ValueError(
                f"channels share a depth of {self.depth} and {self.columns} columns, so depthwise_lanes is at most "
                f"{min(self.depth, self.columns)}, got {self.depthwise_lanes}"
            )
        return self


class BitSerial(Accelerator[BitSerialDescription]):
    """The slower of the array, of filling its two buffers and of memory.

    Costs fall with channels by rows, columns and depth of the array, with the bits of an operand that is not serial
    only as its traffic does.

    Raises:
        InputError: a buffer is smaller than what the array takes in a cycle.
    """

    Sections: ClassVar[type[Description]] = BitSerialDescription
    levels: ClassVar[tuple[str, ...]] = ("dram", "weights", "activations")
    elements: ClassVar[tuple[str, ...]] = ("rows", "columns", "depth")

    def __init__(self, description: BitSerialDescription, technology: Technology) -> None:
        super().__init__(description, technology)
        for level, count, serial, bits in (
            ("weights", description.columns, "activations", description.weight_bits),
            ("activations", description.rows, "weights", description.activation_bits),
        ):
            wide = bits[-1] if description.serial == serial else 1
            least = count * description.depth * wide
            if self.memories[level].usable_bits < least:
                raise InputError(
                    f"the memory level {level!r} is smaller than one tile: the array takes {least} bits of it in a "
                    "cycle; enlarge it"
                )

    def run(self, works: Workloads) -> Usage:
        """By level: memory outside of the chip, and what goes into each operand's buffer and from it to the array.

        What a buffer is filled with anew, as it holds less than all, is counted in memory's traffic alone.
        """
        array = _Passes(self.description, works)
        traffic = {
            "dram": self._offchip(works),
            "weights": Traffic(array.weights * array.row_tiles, array.weights),
            "activations": Traffic(array.activations * array.column_tiles, array.activations),
        }
        return self.used(works, array.cycles, traffic, peak_macs_per_cycle=array.peak)

    def _offchip(self, works: Workloads) -> Traffic:
        """Between chip and memory in a pass of the batch, all steps."""
        units = works.groups * np.where(works.product > 0, works.batch, 1)  # each with operands of its own
        weights = works.weights * works.weight_bits.astype(np.float64)
        activations = works.inputs * works.activation_bits.astype(np.float64)  # of all steps
        room = {name: self.memories[name].usable_bits for name in ("weights", "activations")}
        once = weights <= room["weights"]  # weights stay over the steps of a recurrent layer
        streamed = np.where(once, weights, weights * works.steps)
        if self.description.activations_on_chip:
            return Traffic(streamed, np.zeros(len(works)))
        weights_stay = streamed + activations * np.ceil(weights / units / room["weights"])
        activations_stay = activations + streamed * np.ceil(activations / units / works.steps / room["activations"])
        outputs = np.asarray(works.outputs * works.activation_bits, dtype=np.float64)
        return Traffic(np.minimum(weights_stay, activations_stay), outputs)


class _Passes:
    """How layers pass the array, arrays [N].

    Attributes:
        cycles: of the array.
        peak: multiply-accumulates of the whole array in a cycle.
        row_tiles, column_tiles: times that the array's rows and columns pass over those of a layer, of an image where
            these pass one after the other.
        weights, activations: bits that fill the buffers, of all images and steps.
    """

    def __init__(self, description: BitSerialDescription, works: Workloads) -> None:
        lanes = np.where(works.depthwise, description.depthwise_lanes, 1)
        groups = -(-works.groups // lanes)
        images = np.where(_apart(description, works), works.batch, 1)
        rows = works.rows // images
        passes = images * works.steps
        self.row_tiles = -(-rows // description.rows)
        self.column_tiles = -(-works.out_channels // description.columns)

        deeper = max(description.depth, description.one_bit_depth)
        depth = np.where(works.weight_bits == 1, deeper, description.depth)
        chunks = -(-works.depth // (depth // lanes))
        bits = _serial_bits(description, works)
        tiles = groups * self.row_tiles * self.column_tiles
        self.cycles = np.asarray(passes * tiles * chunks * bits, dtype=np.float64)
        self.peak = np.asarray(description.rows * description.columns * depth / bits)

        word = float(description.word)
        weights = works.groups * works.out_channels * np.ceil(works.depth / word)
        activations = groups * rows * np.ceil(works.depth * lanes / word)
        self.weights = passes * weights * word * works.weight_bits
        self.activations = passes * activations * word * works.activation_bits


def _apart(description: BitSerialDescription, works: Workloads) -> npt.NDArray[np.bool_]:
    """Whether images pass one after the other."""
    pixels = works.out_height * works.out_width
    return np.asarray((works.product > 0) | (description.images_apart & (pixels > 1)))


def _serial_bits(description: BitSerialDescription, works: Workloads) -> IntArray:
    if description.serial == "both":
        return works.weight_bits * works.activation_bits
    return works.weight_bits if description.serial == "weights" else works.activation_bits
