"""8-bit fully connected layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from backends.tvm.kernels.base import Array, Expression, block_count, threads_for
from backends.tvm.kernels.integer.dot import Sums
from backends.tvm.kernels.integer.epilogue import TO_CODES, IntegerEpilogue
from backends.tvm.kernels.integer.kernel import IntegerKernel, check_products
from backends.tvm.kernels.loops import Cover, each, serial, spread_over, store, then, vector, when
from backends.tvm.target import Cpu

_STREAMS = 8
"""Blocks at once: as many weights are read in parallel, and sums hide the latency of a multiply-add."""


@dataclass(frozen=True, slots=True)
class IntegerDense(IntegerKernel):
    """Matrix product of codes with constant weights: [batch, size] -> [batch, outputs].

    Operands: source, weight int8 [output blocks, size / 4, lanes, 4], scale and bias [output blocks, lanes], and limits
    [2] where codes come out.

    Attributes:
        batch, size: shape of the input buffer; the size is a multiple of 4.
        outputs: features that come out.

    Raises:
        ValueError: a size that is no multiple of 4, a residual, or too many products for an int32.
    """

    kind: ClassVar[str] = "dense_u8"

    batch: int
    size: int
    outputs: int
    lanes: int
    epilogue: IntegerEpilogue = TO_CODES

    def __post_init__(self) -> None:
        if self.size % 4 or self.epilogue.residual != "none":
            raise ValueError(f"a dense layer reads a multiple of 4 codes, not {self.size}, and adds no residual")
        check_products(self.size)

    @property
    def blocks(self) -> int:
        """Blocks of outputs, of which the last may not be full."""
        return block_count(self.outputs, self.lanes)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """[batch, outputs]."""
        return self.batch, self.outputs

    @property
    def operand_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See the class."""
        channels = self.blocks, self.lanes
        return {
            "source": (self.batch, self.size),
            "weight": (self.blocks, self.size // 4, self.lanes, 4),
            "scale": channels,
            "bias": channels,
            **self.epilogue.limits,
        }

    @property
    def work(self) -> float:
        """Multiply-adds."""
        return float(self.batch * self.outputs * self.size)

    def write(self, cpu: Cpu, *buffers: Any) -> None:
        """A few blocks of one row in registers, the whole reduction around them."""
        *operands, out = buffers
        named, cover = self.named(operands), Cover.of(self.blocks, _STREAMS)
        with spread_over((self.batch, cover.count), threads_for(self.work, cpu), (1, 0)) as (n, tile):
            block = cover.start(tile)
            sums = Sums(cpu.dot, cover.width, (), self.lanes, shared=True)
            with serial(self.size // 4) as step:
                inputs = named["source"].vload([n, step * 4], "uint8x4")
                sums.add_inputs((), inputs)
                with each(range(cover.width)) as (o,):
                    weights = named["weight"].vload([block + o, step, 0, 0], f"int8x{4 * self.lanes}")
                    sums.add_products(o, (), inputs, weights)
            with each(range(cover.width)) as (o,):
                self._finish(sums, n, block + o, o, named, out)

    def _finish(self, sums: Any, n: Expression, block: Expression, o: Expression, named: Any, out: Any) -> None:
        """Stores one block's outputs; of the last block only those that there are."""

        def element(v: Expression) -> None:
            index = n, block * self.lanes + v
            store(out, index, self.epilogue.apply(sums.total(o, (), v), (block, v), index, named))

        if self.outputs % self.lanes == 0:
            with vector(self.lanes) as v:
                element(v)
            return
        with when((block + 1) * self.lanes <= self.outputs), then(), vector(self.lanes) as v:
            element(v)
        with when((block + 1) * self.lanes > self.outputs), then(), serial(self.outputs % self.lanes) as v:
            element(v)

    def reference(self, operands: Sequence[Array]) -> Array:
        """NumPy's product, in int64."""
        named = self.named(operands)
        matrix = named["weight"].transpose(0, 2, 1, 3).reshape(-1, self.size)[: self.outputs].astype(np.int64)
        scale, bias = (named[name].reshape(-1)[: self.outputs] for name in ("scale", "bias"))
        return self.epilogue.reference(named["source"].astype(np.int64) @ matrix.T, scale, bias, named)
