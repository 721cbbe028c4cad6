"""Operators that move data: into channel blocks and out of them, gathers of channels, concatenation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from tvm import te, tirx

from backends.tvm.kernels.base import (
    Array,
    Kernel,
    block_count,
    pack_blocks,
    parallelize,
    product,
    threads_for,
    unpack_blocks,
    vectorize_inner,
)
from backends.tvm.kernels.epilogue import IDENTITY, Activation
from backends.tvm.kernels.loops import WrittenKernel, serial, spread_over, store, vector
from backends.tvm.target import Cpu


@dataclass(frozen=True, slots=True)
class Pack(Kernel):
    """Plain [N, C, H, W] -> [N, blocks, H, W, lanes], zeros behind the last channel."""

    kind: ClassVar[str] = "pack"

    source: tuple[int, ...]
    lanes: int

    @property
    def output_shape(self) -> tuple[int, ...]:
        """[N, blocks, H, W, lanes]."""
        return self.source[0], block_count(self.source[1], self.lanes), *self.source[2:], self.lanes

    def declare(self, cpu: Cpu) -> list[Any]:
        """A transposition within each block."""
        source = te.placeholder(self.source, name="source")
        channels = self.source[1]

        def element(n: Any, o: Any, h: Any, w: Any, v: Any) -> Any:
            channel = o * self.lanes + v
            value = source[n, te.min(channel, channels - 1), h, w]
            return tirx.if_then_else(channel < channels, value, tirx.const(0.0, "float32"))

        return [source, te.compute(self.output_shape, element, name="out")]

    def schedule(self, schedule: Any, cpu: Cpu) -> None:
        """One pixel's lanes at a time."""
        vectorize_inner(schedule, schedule.get_sblock("out"))

    def reference(self, operands: Sequence[Array]) -> Array:
        """Zeros appended, then split into blocks."""
        channels = torch.from_numpy(operands[0])
        return pack_blocks(F.pad(channels, (0, 0, 0, 0, 0, -self.source[1] % self.lanes)), self.lanes)


@dataclass(frozen=True, slots=True)
class Unpack(Kernel):
    """[N, blocks, H, W, lanes] -> plain [N, C, H, W]. Operands: input, table int32 [C] of the channels' positions."""

    kind: ClassVar[str] = "unpack"

    source: tuple[int, ...]
    channels: int

    @property
    def output_shape(self) -> tuple[int, ...]:
        """[N, C, H, W]."""
        return self.source[0], self.channels, *self.source[2:4]

    def declare(self, cpu: Cpu) -> list[Any]:
        """One channel after the other."""
        source = te.placeholder(self.source, name="source")
        table = te.placeholder((self.channels,), name="table", dtype="int32")
        lanes = self.source[4]
        out = te.compute(
            self.output_shape, lambda n, c, h, w: source[n, table[c] // lanes, h, w, table[c] % lanes], name="out"
        )
        return [source, table, out]

    def schedule(self, schedule: Any, cpu: Cpu) -> None:
        """As it comes."""

    def example_table(self, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
        """Positions of channels."""
        return generator.integers(0, self.source[1] * self.source[4], shape)

    def reference(self, operands: Sequence[Array]) -> Array:
        """The channels looked up."""
        source, table = operands
        return np.take(unpack_blocks(source), table, axis=1)


@dataclass(frozen=True, slots=True)
class GatherFeatures(Kernel):
    """[N, size] -> [N, K] by a table of positions. Operands: input, table int32 [K]."""

    kind: ClassVar[str] = "gather_features"

    source: tuple[int, int]
    features: int

    @property
    def output_shape(self) -> tuple[int, ...]:
        """[N, K]."""
        return self.source[0], self.features

    def declare(self, cpu: Cpu) -> list[Any]:
        """A look-up."""
        source = te.placeholder(self.source, name="source")
        table = te.placeholder((self.features,), name="table", dtype="int32")
        return [source, table, te.compute(self.output_shape, lambda n, k: source[n, table[k]], name="out")]

    def schedule(self, schedule: Any, cpu: Cpu) -> None:
        """As it comes."""

    def example_table(self, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
        """Positions of features."""
        return generator.integers(0, self.source[1], shape)

    def reference(self, operands: Sequence[Array]) -> Array:
        """The features looked up."""
        source, table = operands
        return np.take(source, table, axis=1)


@dataclass(frozen=True, slots=True)
class Gather(Kernel):
    """Any channels of any rows and columns, into fresh blocks: what a map of channels alone cannot express.

    Operands: input, table int32 [blocks, lanes] of the positions, below zero for a channel of zeros; where the input
    holds codes also that of zero, uint8 [1], which such channels and the border hold.

    Attributes:
        size: output rows and columns.
        offset: input row and column of the first output; below zero the output begins with a border of `fill`.
        stride: input rows and columns between two outputs.
        fill: what the border of numbers holds, in every channel.
        dtype: "float32" or "uint8".
    """

    kind: ClassVar[str] = "gather"

    source: tuple[int, ...]
    blocks: int
    size: tuple[int, int]
    offset: tuple[int, int] = (0, 0)
    stride: tuple[int, int] = (1, 1)
    fill: float = 0.0
    dtype: str = "float32"

    @property
    def output_shape(self) -> tuple[int, ...]:
        """[N, blocks, rows, columns, lanes]."""
        return self.source[0], self.blocks, *self.size, self.source[4]

    @property
    def output_dtype(self) -> str:
        """The input's."""
        return self.dtype

    def declare(self, cpu: Cpu) -> list[Any]:
        """A look-up of each lane."""
        lanes = self.source[4]
        source = te.placeholder(self.source, name="source", dtype=self.dtype)
        table = te.placeholder((self.blocks, lanes), name="table", dtype="int32")
        codes = [te.placeholder((1,), name="fill", dtype="uint8")] if self.dtype == "uint8" else []
        zero = codes[0][0] if codes else tirx.const(0.0, "float32")
        fill = codes[0][0] if codes else tirx.const(self.fill, "float32")
        inside_always = all(
            offset >= 0 and offset + (size - 1) * stride < extent
            for offset, size, stride, extent in zip(self.offset, self.size, self.stride, self.source[2:4], strict=True)
        )

        def element(n: Any, o: Any, h: Any, w: Any, v: Any) -> Any:
            position = te.max(table[o, v], 0)
            y, x = h * self.stride[0] + self.offset[0], w * self.stride[1] + self.offset[1]
            value = tirx.Select(table[o, v] >= 0, source[n, position // lanes, y, x, position % lanes], zero)
            if inside_always:
                return value
            inside = tirx.all(y >= 0, y < self.source[2], x >= 0, x < self.source[3])
            return tirx.if_then_else(inside, value, fill)

        return [source, table, *codes, te.compute(self.output_shape, element, name="out")]

    def schedule(self, schedule: Any, cpu: Cpu) -> None:
        """A vector gather a pixel."""
        out = schedule.get_sblock("out")
        vectorize_inner(schedule, out)
        parallelize(schedule, schedule.get_loops(out)[:3], product(self.output_shape), cpu)

    def example_table(self, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
        """Positions of channels, a few of them of zeros."""
        return generator.integers(-1, self.source[1] * self.source[4], shape)

    def reference(self, operands: Sequence[Array]) -> Array:
        """torch's padding of what is read, then every so many rows and columns, then the channels looked up."""
        source, table, *codes = operands
        zero, fill = (codes[0].item(), codes[0].item()) if codes else (0.0, self.fill)
        channels = torch.from_numpy(unpack_blocks(source))
        (top, left), (height, width) = self.offset, self.source[2:4]
        below, beside = (
            offset + (size - 1) * stride + 1 - extent
            for offset, size, stride, extent in zip(self.offset, self.size, self.stride, (height, width), strict=True)
        )
        positions = torch.from_numpy(table.reshape(-1)).long()
        values = torch.where((positions >= 0)[:, None, None], channels[:, positions.clamp(min=0)], zero)
        framed = F.pad(values, (-left, beside, -top, below), value=fill)
        return pack_blocks(framed[:, :, :: self.stride[0], :: self.stride[1]], self.source[4])


@dataclass(frozen=True, slots=True)
class Concat(WrittenKernel):
    """Whole blocks of several buffers behind one another, and what may follow: an affine map of channels, an activation
    (DenseNet's layers begin with just that).

    Operands: the sources, then scale and shift [blocks taken, lanes] where there is an affine map.

    Attributes:
        sources: shapes of the input buffers, alike but for their blocks.
        taken: of each, the blocks that are taken.
        affine: whether each channel is scaled and shifted.
        activation: applied last.
    """

    kind: ClassVar[str] = "concat"

    sources: tuple[tuple[int, ...], ...]
    taken: tuple[tuple[int, ...], ...]
    affine: bool = False
    activation: Activation = IDENTITY

    @property
    def output_shape(self) -> tuple[int, ...]:
        """[N, all taken blocks, H, W, lanes]."""
        batch, _, *pixel = self.sources[0]
        return batch, sum(map(len, self.taken)), *pixel

    @property
    def operand_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See the class."""
        sources = {f"source{i}": shape for i, shape in enumerate(self.sources)}
        channels = self.output_shape[1], self.output_shape[4]
        return {**sources, **({"scale": channels, "shift": channels} if self.affine else {})}

    def write(self, cpu: Cpu, *buffers: Any) -> None:
        """Row by row, runs of neighbouring blocks at once."""
        *operands, out = buffers
        scale, shift = operands[-2:] if self.affine else (None, None)
        batch, _, rows, columns, lanes = self.output_shape
        with spread_over((batch, rows), threads_for(self.work, cpu)) as (n, row):
            for operand, first, start, count in self._runs(operands):
                with serial(count) as block, serial(columns) as column, vector(lanes) as v:
                    value = operand[n, start + block, row, column, v]
                    if scale is not None and shift is not None:
                        value = value * scale[first + block, v] + shift[first + block, v]
                    store(out, (n, first + block, row, column, v), self.activation.apply(value))

    def _runs(self, operands: Sequence[Any]) -> Iterator[tuple[Any, int, int, int]]:
        """Operand, first block of the output, first block of the operand, blocks that follow each other in both."""
        position = 0
        for operand, blocks in zip(operands, self.taken, strict=False):
            ends = [i + 1 for i in range(len(blocks)) if i + 1 == len(blocks) or blocks[i + 1] != blocks[i] + 1]
            for start, end in pairwise([0, *ends]):
                yield operand, position + start, blocks[start], end - start
            position += len(blocks)

    def reference(self, operands: Sequence[Array]) -> Array:
        """torch's concatenation and what follows."""
        parts = [
            torch.from_numpy(operand)[:, list(blocks)] for operand, blocks in zip(operands, self.taken, strict=False)
        ]
        value = torch.cat(parts, dim=1)
        if self.affine:
            scale, shift = (torch.from_numpy(one)[:, None, None] for one in operands[-2:])
            value = value * scale + shift
        return self.activation.reference(value).numpy()
