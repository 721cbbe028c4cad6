"""Fully connected layers."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tvm import te

from backends.tvm.epilogue import NO_EPILOGUE, Epilogue
from backends.tvm.kernel import Kernel, parallelize, product
from backends.tvm.layout import Features, Span, Value, block_count, pack_channels, pack_dense, plan_reduction
from backends.tvm.lower import Lowering
from backends.tvm.target import Cpu
from backends.tvm.tiles import choose_tile


@dataclass(frozen=True, slots=True)
class Dense(Kernel):
    """Matrix product with constant weights, bias and activation: [batch, size] -> [batch, outputs].

    Operands: input, weight [blocks, steps, width, lanes], bias [blocks, lanes], where the span is irregular the table
    int32 [steps].
    """

    kind: ClassVar[str] = "dense"

    batch: int
    size: int
    span: Span
    outputs: int
    lanes: int
    epilogue: Epilogue = NO_EPILOGUE

    @property
    def output_shape(self) -> tuple[int, ...]:
        """[batch, outputs]."""
        return self.batch, self.outputs

    def declare(self, cpu: Cpu) -> list[Any]:
        """Sums in blocks of a vector, then the epilogue into a plain matrix."""
        blocks = block_count(self.outputs, self.lanes)
        source = te.placeholder((self.batch, self.size), name="source")
        weight = te.placeholder((blocks, self.span.steps, self.span.width, self.lanes), name="weight")
        bias = te.placeholder((blocks, self.lanes), name="bias")
        operands = [source, weight, bias]
        table = None
        if self.span.start is None:
            table = te.placeholder((self.span.steps,), name="table", dtype="int32")
            operands.append(table)
        step, lane = te.reduce_axis((0, self.span.steps), "step"), te.reduce_axis((0, self.span.width), "lane")

        def element(n: Any) -> Any:
            first = table[step] if table is not None else self.span.start + step * self.span.width
            return source[n, first + lane]

        sums = te.compute(
            (self.batch, blocks, self.lanes),
            lambda n, o, v: te.sum(element(n) * weight[o, step, lane, v], axis=[step, lane]),
            name="sum",
        )
        out = te.compute(
            self.output_shape,
            lambda n, j: self.epilogue.apply(
                sums[n, j // self.lanes, j % self.lanes], bias[j // self.lanes, j % self.lanes], None
            ),
            name="out",
        )
        return [*operands, out]

    def schedule(self, schedule: Any, cpu: Cpu) -> None:
        """The tile of a convolution, with the batch in the place of pixels."""
        sums = schedule.get_sblock("sum")
        tile = choose_tile(block_count(self.outputs, self.lanes), 1, self.batch, cpu)
        n, o, v, step, lane = schedule.get_loops(sums)
        o_outer, o_inner = schedule.split(o, [None, tile.blocks])
        n_outer, n_inner = schedule.split(n, [None, tile.columns])
        schedule.reorder(o_outer, n_outer, step, lane, n_inner, o_inner, v)
        schedule.vectorize(v)
        schedule.unroll(n_inner)
        schedule.unroll(o_inner)
        store = schedule.cache_write(sums, 0, "local")
        schedule.reverse_compute_at(store, n_outer, preserve_unit_loops=True)
        *_, first, second, last = schedule.get_loops(store)
        schedule.vectorize(last)
        schedule.unroll(first)
        schedule.unroll(second)
        *_, first, second, last = schedule.get_loops(schedule.decompose_reduction(sums, step))
        schedule.vectorize(last)
        schedule.unroll(first)
        schedule.unroll(second)
        work = self.batch * self.outputs * product((self.span.steps, self.span.width))
        parallelize(schedule, (o_outer, n_outer), work, cpu)


def lower_matmul(lowering: Lowering, binding: Any) -> Value | None:
    """The product of a matrix of features with constant weights [inputs, outputs]."""
    source = lowering.features(lowering.value(binding.value.args[0]))
    weight = lowering.constant(binding.value.args[1])
    if source is None or weight is None or weight.ndim != 2 or weight.dtype != np.float32:
        return None
    outputs, lanes = weight.shape[1], lowering.cpu.lanes
    tail = lowering.fuse_tail(binding, outputs, residual=False)
    span, order, starts = plan_reduction(source.channels, lanes)
    kernel = Dense(source.batch, source.size, span, outputs, lanes, tail.epilogue)
    in_order = np.arange(outputs, dtype=np.int64)
    table = [] if span.start is not None else [starts.astype(np.int32)]
    expr = lowering.call(
        kernel,
        source.expr,
        pack_dense(weight.T * tail.scale[:, None], order, span.width, lanes),
        pack_channels(tail.shift, in_order, block_count(outputs, lanes), lanes),
        *table,
    )
    return Features(expr, in_order, source.batch, outputs)
