"""Tensor-train engine: small matrices run one after the other, what passes between them kept on the chip.

TIE (Deng et al., ISCA 2019): `processing_elements` columns of what is read take part in a cycle, each with
`multipliers` rows of the weights, which all elements share. A layer [P, K] by [K, N] takes

    ceil(N / multipliers) * ceil(P / processing_elements) * K cycles.

Of a layer that was taken apart, what a part gives the next stays in the working memory where it fits there.
"""

from collections.abc import Sequence
from math import prod
from typing import ClassVar

import numpy as np
from pydantic import Field

from backends.accelerators.accelerator import Accelerator, Description, Usage
from backends.accelerators.memory import Traffic
from backends.accelerators.tiling import Buffers, Offchip, Operands, least_traffic
from backends.accelerators.workloads import IntArray, Workload, Workloads
from search_spaces.errors import InputError

STAYS = 1e-9
"""Bits that a number takes in traffic to memory outside of the chip, and in tiles, when it never leaves the chip."""


class TensorTrainDescription(Description):
    """What the engine is made of.

    Attributes:
        processing_elements: columns at a time.
        multipliers: of each element: rows at a time.
    """

    processing_elements: int = Field(ge=1, le=65536)
    multipliers: int = Field(ge=1, le=65536)


class TensorTrainEngine(Accelerator[TensorTrainDescription]):
    """All kinds of layers as matrix products; groups, heads and time steps run one after the other.

    Rows and columns are rounded up to whole passes of the array. Zeros save nothing.
    """

    Sections: ClassVar[type[Description]] = TensorTrainDescription
    levels: ClassVar[tuple[str, ...]] = ("dram", "weights", "working")
    elements: ClassVar[tuple[str, ...]] = ("processing_elements", "multipliers")

    def refusals(self, works: Workloads) -> list[str | None]:
        """Those of every accelerator, and layers whose smallest tile is larger than the memories."""
        fits = self._offchip(self.fitted(works).replace(reads_part=0, feeds_part=0)).fits
        return [
            reason or (None if fit else "its smallest tile does not fit the levels 'weights' and 'working'")
            for reason, fit in zip(super().refusals(works), fits.tolist(), strict=True)
        ]

    def run(self, works: Workloads) -> Usage:
        """By level: what the array reads and writes, and what passes between chip and memory."""
        description = self.description
        alone = np.where(works.product > 0, works.batch, 1)  # each image has a second matrix of its own
        repeats = works.groups * works.steps * alone
        rows = works.rows // alone
        passes = -(-works.out_channels // description.multipliers)
        row_passes = -(-rows // description.processing_elements)
        cycles = repeats * passes * row_passes * works.depth
        reads = repeats * passes * rows * works.depth * works.activation_bits
        weights = repeats * row_passes * works.depth * works.out_channels * works.weight_bits
        moved = self._offchip(works)
        traffic = {
            "dram": Traffic(moved.read, moved.written),
            "working": _traffic(reads, works.outputs * works.activation_bits),
            "weights": _traffic(weights, np.zeros_like(weights)),
        }
        peak = float(description.processing_elements * description.multipliers)
        return self.used(works, np.asarray(cycles, dtype=np.float64), traffic, peak_macs_per_cycle=peak)

    def _offchip(self, works: Workloads) -> Offchip:
        """Bits between chip and memory; of the working memory half is for what is read, half for what is given."""
        working = self.memories["working"].usable_bits
        buffers = Buffers(weights=self.memories["weights"].usable_bits, inputs=working / 2, outputs=working / 2)
        bits = works.activation_bits
        reads_kept = (works.reads_part > 0) & (works.inputs * bits <= working)
        gives_kept = (works.feeds_part > 0) & (works.outputs * bits <= working)
        operands = Operands(
            weight=works.weight_bits,
            activation=np.where(reads_kept, STAYS, bits),
            output=np.where(gives_kept, STAYS, bits),
            accumulator=self.description.accumulator_bits,
        )
        return least_traffic(works, buffers, operands)


def _traffic(read: IntArray, written: IntArray) -> Traffic:
    return Traffic(np.asarray(read, dtype=np.float64), np.asarray(written, dtype=np.float64))


def tensor_train_layer(
    input_modes: Sequence[int], output_modes: Sequence[int], ranks: Sequence[int], *, batch: int = 1, bits: int = 16
) -> Workloads:
    """A fully connected layer in tensor-train format as the matrix products of the compact scheme.

    A core k is a matrix [m_k r_(k-1), n_k r_k]; from the last core to the first it multiplies, reshaped, what the one
    before gave, so that nothing is computed twice (Deng et al., ISCA 2019). Stage k is a product with

        P = n_1 ... n_(k-1) * m_(k+1) ... m_d,    K = n_k r_k,    N = m_k r_(k-1).

    Args:
        input_modes: n_1 ... n_d, whose product is the layer's inputs.
        output_modes: m_1 ... m_d, whose product is the layer's outputs.
        ranks: r_0 ... r_d, the first and the last of them 1.
        batch: images in a pass.
        bits: of weights and activations.

    Returns:
        d rows in the order they run, with all of their parts on the chip where they fit; `macs` counts the operations.

    Raises:
        InputError: there are not as many modes on both sides and one more rank, one of them is below 1, or the outer
            ranks are not 1.

    >>> tensor_train_layer([2, 3], [4, 5], [1, 2, 1]).macs.tolist()
    [60, 80]
    """
    length = len(input_modes)
    if not length or len(output_modes) != length or len(ranks) != length + 1:
        raise InputError(
            "a tensor train has as many input as output modes, at least one, and one rank more, got "
            f"{length}, {len(output_modes)} and {len(ranks)}"
        )
    if any(type(each) is not int or each < 1 for each in (*input_modes, *output_modes, *ranks)):
        raise InputError(
            f"modes and ranks are whole numbers from 1, got {[*input_modes]}, {[*output_modes]} and {[*ranks]}"
        )
    if ranks[0] != 1 or ranks[-1] != 1:
        raise InputError(f"the first and the last rank are 1, got {[*ranks]}")
    rows = []
    for core in reversed(range(length)):
        columns = prod(input_modes[:core]) * prod(output_modes[core + 1 :])
        rows.append(
            Workload(
                batch=batch,
                in_channels=input_modes[core] * ranks[core + 1],
                out_channels=output_modes[core] * ranks[core],
                in_height=columns,
                out_height=columns,
                weight_bits=bits,
                activation_bits=bits,
                reads_part=int(core < length - 1),
                feeds_part=int(core > 0),
            )
        )
    return Workloads.of(rows)
