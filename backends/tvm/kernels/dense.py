"""Fully connected layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from tvm import te

from backends.tvm.kernels.base import Array, Kernel, Span, parallelize
from backends.tvm.kernels.epilogue import NO_EPILOGUE, Epilogue
from backends.tvm.kernels.tiles import Tile
from backends.tvm.target import Cpu


@dataclass(frozen=True, slots=True)
class Dense(Kernel):
    """Matrix product with constant weights, bias and activation: [batch, size] -> [batch, outputs].

    Operands: input, weight [blocks / tile.blocks, steps, width, tile.blocks, lanes] (one stream in the order it is
    read), bias [blocks, lanes], where the span is irregular the table int32 [steps].

    Attributes:
        batch, size: shape of the input buffer.
        span: how the reduction walks over the input's features.
        outputs: features that come out.
        blocks: blocks that are computed, perhaps more than the outputs need.
        tile: blocks, and rows of the matrix in the place of columns, that are computed at once.
        partial: partial sums of each output.
    """

    kind: ClassVar[str] = "dense"

    batch: int
    size: int
    span: Span
    outputs: int
    blocks: int
    lanes: int
    tile: Tile
    partial: int = 1
    epilogue: Epilogue = NO_EPILOGUE

    @property
    def output_shape(self) -> tuple[int, ...]:
        """[batch, outputs]."""
        return self.batch, self.outputs

    @property
    def work(self) -> float:
        """Multiply-adds."""
        return float(self.batch * self.outputs * self.span.steps * self.span.width)

    def example_table(self, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
        """Positions of groups of features."""
        return self.span.example(self.size, generator)

    def reference(self, operands: Sequence[Array]) -> Array:
        """torch's linear layer of the features that the span reads."""
        source, weight, bias, *rest = operands
        matrix = weight.transpose(0, 3, 4, 1, 2).reshape(self.blocks * self.lanes, -1)[: self.outputs]
        features = torch.from_numpy(source[:, self.span.positions(rest)])
        sums = F.linear(features, torch.from_numpy(matrix), torch.from_numpy(bias.reshape(-1)[: self.outputs]))
        return self.epilogue.reference(sums, None).numpy()

    def declare(self, cpu: Cpu) -> list[Any]:
        """Partial sums in blocks of a vector, then the epilogue into a plain matrix."""
        span, stream = self.span, self.tile.blocks
        source = te.placeholder((self.batch, self.size), name="source")
        weight_shape = (self.blocks // stream, span.steps, span.width, stream, self.lanes)
        weight = te.placeholder(weight_shape, name="weight")
        bias = te.placeholder((self.blocks, self.lanes), name="bias")
        operands = [source, weight, bias]
        table = None
        if span.start is None:
            table = te.placeholder((span.steps,), name="table", dtype="int32")
            operands.append(table)
        step, part = te.reduce_axis((0, span.steps), "step"), te.reduce_axis((0, span.width // self.partial), "part")

        def term(n: Any, o: Any, p: Any, v: Any) -> Any:
            first = table[step] if table is not None else span.start + step * span.width
            lane = part * self.partial + p
            return source[n, first + lane] * weight[o // stream, step, lane, o % stream, v]

        sums = te.compute(
            (self.batch, self.blocks, self.partial, self.lanes),
            lambda n, o, p, v: te.sum(term(n, o, p, v), axis=[step, part]),
            name="sum",
        )

        def element(n: Any, j: Any) -> Any:
            o, v = j // self.lanes, j % self.lanes
            total = reduce(add, (sums[n, o, p, v] for p in range(self.partial)))
            return self.epilogue.apply(total, bias[o, v], None)

        return [*operands, te.compute(self.output_shape, element, name="out")]

    def schedule(self, schedule: Any, cpu: Cpu) -> None:
        """The tile's partial sums in registers, the whole reduction around them; stored, then added up."""
        sums = schedule.get_sblock("sum")
        n, o, p, v, step, part = schedule.get_loops(sums)
        o_outer, o_inner = schedule.split(o, [None, self.tile.blocks])
        n_outer, n_inner = schedule.split(n, [None, self.tile.columns])
        schedule.reorder(o_outer, n_outer, step, part, p, n_inner, o_inner, v)
        store = schedule.cache_write(sums, 0, "local")
        schedule.reverse_compute_at(store, n_outer, preserve_unit_loops=True)
        _in_registers(schedule, store)
        _in_registers(schedule, sums)
        parallelize(schedule, (o_outer, n_outer), self.work, cpu)
        _in_registers(schedule, schedule.decompose_reduction(sums, step))


def _in_registers(schedule: Any, block: Any) -> None:
    """Unrolls the loops of a block over the tile's accumulators."""
    *_, first, second, third, lanes = schedule.get_loops(block)
    schedule.vectorize(lanes)
    for loop in (first, second, third):
        schedule.unroll(loop)
