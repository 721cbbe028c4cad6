"""8-bit depthwise convolution: four neighbouring pixels of each channel at a time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from tvm import tirx
from tvm.script.ir_builder import tirx as script

from backends.tvm.kernels.base import Array, Expression, Window, framed, pack_blocks, product, unpack_blocks
from backends.tvm.kernels.depthwise import PerChannel
from backends.tvm.kernels.integer.dot import Sums, registers_of_a_sum
from backends.tvm.kernels.integer.epilogue import TO_CODES, IntegerEpilogue
from backends.tvm.kernels.integer.kernel import IntegerKernel, check_products
from backends.tvm.kernels.loops import between, each, store, vector
from backends.tvm.kernels.windows import walks
from backends.tvm.target import Cpu


@dataclass(frozen=True, slots=True)
class Quads:
    """How groups of four neighbouring pixels cover the windows of a row.

    A window of k columns needs ceil(k / 4) groups, which leave room for it to begin at any of their first pixels: so
    one group serves several windows, each with its weights shifted by where it begins.

    Attributes:
        window: of the convolution.
    """

    window: Window

    @property
    def groups(self) -> int:
        """That hold a window."""
        return -(-self.window.kernel[1] // 4)

    @property
    def shifts(self) -> int:
        """Pixels of the first group at which a window may begin."""
        return 4 * self.groups - self.window.kernel[1] + 1 if self.window.dilation[1] == 1 else 1

    def first(self, output: int, outputs: int) -> int:
        """The first pixel, from that of the first window, of the groups that hold a window, of so many in a row. Where
        it can be, no group reaches beyond the last window."""
        begin = output * self.window.stride[1]
        last = (outputs - 1) * self.window.stride[1] + self.window.kernel[1] - 4 * self.groups
        return max(begin - self.shifts + 1, min(begin - begin % self.shifts, last))

    def pack(self, weight: Array) -> Array:
        """[blocks, kh, kw, lanes] -> [blocks, kh, shifts, groups, lanes, 4], each shift between zeros."""
        blocks, rows, columns, lanes = weight.shape
        packed = np.zeros((blocks, rows, self.shifts, 4 * self.groups, lanes), dtype=weight.dtype)
        for shift in range(self.shifts):
            packed[:, :, shift, shift : shift + columns] = weight
        grouped = packed.reshape(blocks, rows, self.shifts, self.groups, 4, lanes)
        return np.ascontiguousarray(grouped.transpose(0, 1, 2, 3, 5, 4))

    def unpack(self, packed: Array) -> Array:
        """The inverse of `pack`."""
        blocks, rows, _, groups, lanes, _ = packed.shape
        taps = packed[:, :, 0].transpose(0, 1, 2, 4, 3).reshape(blocks, rows, 4 * groups, lanes)
        return taps[:, :, : self.window.kernel[1]]


@dataclass(frozen=True, slots=True)
class IntegerDepthwise(IntegerKernel, PerChannel):
    """Depthwise convolution of codes.

    Operands: source, weight int8 [blocks, kh, shifts, groups, lanes, 4] (see `Quads`), scale and bias [blocks, lanes],
    and those that `IntegerKernel` lists. What lies outside of the map contributes nothing.

    Raises:
        ValueError: too many products for an int32.
    """

    kind: ClassVar[str] = "depthwise_u8"

    epilogue: IntegerEpilogue = TO_CODES

    def __post_init__(self) -> None:
        check_products(product(self.window.kernel))

    @property
    def quads(self) -> Quads:
        """Of its window."""
        return Quads(self.window)

    @property
    def operand_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See the class."""
        channels, quads = (self.source[1], self.source[4]), self.quads
        return {
            "source": self.source,
            "weight": (channels[0], self.window.kernel[0], quads.shifts, quads.groups, channels[1], 4),
            "scale": channels,
            "bias": channels,
            **self.epilogue.limits,
            **self.epilogue.residuals(self.output_shape),
        }

    def pack(self, weight: Array) -> Array:
        """Weights [blocks, kh, kw, lanes] as the kernel reads them."""
        return self.quads.pack(weight.astype(np.int8))

    def example_operands(self, cpu: Cpu, generator: np.random.Generator) -> list[Array]:
        """Any codes; weights that are packed as they should be."""
        operands = IntegerKernel.example_operands(self, cpu, generator)
        operands[1] = self.quads.pack(self.quads.unpack(operands[1]))
        return operands

    def tile_size(self, cpu: Cpu, threads: int) -> tuple[int, int]:
        """A few registers beside those of the sums: the weights of a window's row, and those four pixels. Where that
        leaves few, more rows and fewer columns, so that four pixels serve several rows; threads share single rows."""
        most = cpu.registers // (2 * registers_of_a_sum(cpu))
        if product(self.size) <= most:
            return self.size
        return (1, most) if cpu.registers > 16 or threads > 1 else (most // 2, 2)

    def tile(
        self,
        cpu: Cpu,
        buffers: Sequence[Any],
        channel: Sequence[Expression],
        corner: tuple[Expression, Expression],
        size: tuple[int, int],
    ) -> None:
        """Sums in registers, their windows around them."""
        *operands, out = buffers
        named, lanes = self.named(operands), self.source[4]
        of_rows, of_columns = walks(self.window, self.source[2:4], self.size)
        sums = Sums(cpu.dot, 1, size, lanes)
        for kh, rows in of_rows.visited(corner[0], size[0], _written_out):
            with each(rows) as (y,):
                row = of_rows.at(corner[0] + y, kh)
                for first, group, outputs in self._groups(size[1]):
                    column = of_columns.at(corner[1], 0) + first + 4 * group * self.window.dilation[1]
                    inputs = self._four(named["source"], (*channel, row), column, group)
                    if inputs is None:
                        continue
                    for x in outputs:
                        shift = x * self.window.stride[1] - first
                        weights = named["weight"].vload([channel[1], kh, shift, group, 0, 0], f"int8x{4 * lanes}")
                        sums.add_inputs((y, x), inputs)
                        sums.add_products(0, (y, x), inputs, weights)
        with each(*map(range, size)) as (y, x), vector(lanes) as v:
            index = (*channel, corner[0] + y, corner[1] + x, v)
            store(out, index, self.epilogue.apply(sums.total(0, (y, x), v), (channel[1], v), index, named))

    def _groups(self, columns: int) -> Iterator[tuple[int, int, list[int]]]:
        """First pixel of the groups, which of them, and the outputs whose windows they hold."""
        quads = self.quads
        firsts = [quads.first(x, columns) for x in range(columns)]
        for first in dict.fromkeys(firsts):
            for group in range(quads.groups):
                yield first, group, [x for x in range(columns) if firsts[x] == first]

    def _four(self, source: Any, row: Sequence[Expression], first: Expression, group: int) -> Expression | None:
        """The four pixels of a group, side by side in each lane, zero for those outside of the map; None where all
        are."""
        lanes, width, distance = self.source[4], self.source[3], self.window.dilation[1]
        known = isinstance(first, int)
        # of neighbouring pixels those beyond a window belong to the next; of others they may lie anywhere
        inside = [
            (distance == 1 or 4 * group + q < self.window.kernel[1])
            and (not known or 0 <= first + q * distance < width)
            for q in range(4)
        ]
        if not any(inside):
            return None
        if distance == 1 and width >= 4:
            start = min(max(first, 0), width - 4) if known else first
            pixels = [source.vload([*row, start, 0], f"uint8x{4 * lanes}")]
            places = [first - start + q for q in range(4)] if known else list(range(4))
        else:
            pixels = [
                source.vload([*row, first + q * distance, 0], f"uint8x{lanes}") if there else _zeros(lanes)
                for q, there in enumerate(inside)
            ]
            places, inside = list(range(4)), [True] * 4
        if not all(inside):
            pixels.append(_zeros(4 * lanes))
            places = [place if there else 4 for place, there in zip(places, inside, strict=True)]
        return tirx.Shuffle(pixels, [place * lanes + lane for lane in range(lanes) for place in places])

    def reference(self, operands: Sequence[Array]) -> Array:
        """torch's convolution in float64, which is exact, of as many groups as there are channels."""
        named = self.named(operands)
        image = framed(unpack_blocks(named["source"]).astype(np.float64), self.window, self.size)
        weight = self.quads.unpack(named["weight"])
        filters = weight.transpose(0, 3, 1, 2).reshape(-1, 1, *self.window.kernel).astype(np.float64)
        sums = F.conv2d(
            image,
            torch.from_numpy(filters),
            None,
            self.window.stride,
            dilation=self.window.dilation,
            groups=len(filters),
        )
        scale, bias = (named[name][:, None, None] for name in ("scale", "bias"))
        return self.epilogue.reference(pack_blocks(sums.long(), self.source[4]), scale, bias, named)


def _written_out(first: Expression, last: Expression) -> Any:
    """A loop that is written out where it is known to be short: LLVM then finds what its passes have in common."""
    short = isinstance(first, int) and isinstance(last, int) and last - first <= 3
    return script.unroll(first, last) if short else between(first, last)


def _zeros(lanes: int) -> Expression:
    return tirx.Broadcast(tirx.const(0, "uint8"), lanes)
