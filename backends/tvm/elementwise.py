"""Operators on each element by itself: affine maps of channels, activations, sums."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from tvm import te

from backends.tvm.epilogue import IDENTITY, Activation
from backends.tvm.kernel import Kernel, parallelize, product
from backends.tvm.layout import Blocked, Features, Plain, Value, pack_channels
from backends.tvm.lower import Lowering
from backends.tvm.reading import activation_of, operator_name, shape_of
from backends.tvm.target import Cpu


@dataclass(frozen=True, slots=True)
class Elementwise(Kernel):
    """Over a buffer of any shape.

    Attributes:
        operation: "copy" (source), "add" (source + other), "multiply" (source * other), or "affine"
            (source * scale + shift, with scale and shift [blocks, lanes], or [size] for a matrix).
        activation: applied last.
    """

    kind: ClassVar[str] = "elementwise"

    shape: tuple[int, ...]
    operation: str
    activation: Activation = IDENTITY

    @property
    def output_shape(self) -> tuple[int, ...]:
        """That of the buffer."""
        return self.shape

    def declare(self, cpu: Cpu) -> list[Any]:
        """One expression."""
        source = te.placeholder(self.shape, name="source")
        operands = [source]
        if self.operation in ("add", "multiply"):
            operands.append(te.placeholder(self.shape, name="other"))
        elif self.operation == "affine":
            channels = (self.shape[1], *self.shape[4:])
            operands += [te.placeholder(channels, name="scale"), te.placeholder(channels, name="shift")]

        def element(*index: Any) -> Any:
            value = source[index]
            channel = (index[1], *index[4:])
            if self.operation == "add":
                value = value + operands[1][index]
            elif self.operation == "multiply":
                value = value * operands[1][index]
            elif self.operation == "affine":
                value = value * operands[1][channel] + operands[2][channel]
            return self.activation.apply(value)

        return [*operands, te.compute(self.shape, element, name="out")]

    def schedule(self, schedule: Any, cpu: Cpu) -> None:
        """Vectors along the innermost axis, rows over threads."""
        out = schedule.get_sblock("out")
        loops = schedule.get_loops(out)
        if len(self.shape) == 5:
            schedule.vectorize(loops[-1])
        else:
            _, inner = schedule.split(loops[-1], [None, cpu.lanes])
            schedule.vectorize(inner)
        parallelize(schedule, loops[:2] if len(loops) > 2 else loops[:1], product(self.shape), cpu)


def lower_activation(lowering: Lowering, binding: Any) -> Value | None:
    """A clamp that nothing before it could take in."""
    source, activation = lowering.value(binding.value.args[0]), activation_of(binding.value)
    if activation is None or isinstance(source, tuple) or shape_of(binding.var) == ():
        return None
    if isinstance(source, Blocked):
        source = lowering.stored(source)
        kernel = Elementwise(source.buffer_shape, "copy", activation)
        return lowering.blocks_of(kernel, source.channels, source.expr)
    if isinstance(source, Plain) and source.expr.ty.dtype != "float32":
        return None
    shape = source.shape if isinstance(source, Plain) else (source.batch, source.size)
    return replace(source, expr=lowering.call(Elementwise(shape, "copy", activation), source.expr))


def lower_binary(lowering: Lowering, binding: Any) -> Value | None:
    """A sum or product of two feature maps, or with a constant for each channel."""
    left, right = binding.value.args
    for source in (left, right):
        if lowering.constant(source) is None and (value := lower_affine(lowering, binding, source)) is not None:
            return value
    name = operator_name(binding.value).removeprefix("relax.")
    if name not in ("add", "multiply") or shape_of(left) != shape_of(right):
        return None
    one, other = lowering.value(left), lowering.value(right)
    if isinstance(one, Features) and isinstance(other, Features):
        return _sum_of_features(lowering, binding, name, one, other)
    first, second = lowering.blocked(one), lowering.blocked(other)
    if first is None or second is None:
        return None
    if first.blocks != second.blocks or not np.array_equal(first.channels, second.channels) or not first.stored:
        first, second = lowering.in_order(first), lowering.in_order(second)
    tail = lowering.fuse_tail(binding, first.channels.size, residual=False, affine=False)
    kernel = Elementwise(first.buffer_shape, name, tail.activation)
    return lowering.blocks_of(kernel, first.channels, first.expr, second.expr)


def _sum_of_features(lowering: Lowering, binding: Any, name: str, one: Features, other: Features) -> Features:
    tail = lowering.fuse_tail(binding, len(one.channels), residual=False, affine=False)
    kernel = Elementwise(one.shape, name, tail.activation)
    expr = lowering.call(kernel, lowering.plain(one), lowering.plain(other))
    return Features(expr, np.arange(len(one.channels), dtype=np.int64), one.batch, len(one.channels))


def lower_batch_norm(lowering: Lowering, binding: Any) -> Value | None:
    """A batch norm in evaluation that no operator before it could take in."""
    return lower_affine(lowering, binding, binding.value.args[0])


def lower_affine(lowering: Lowering, binding: Any, source: Any) -> Value | None:
    """source * scale + shift with a constant for each channel, and the clamp behind it."""
    shape = shape_of(source)
    affine = lowering.affine_of(source, binding.value, shape[1]) if len(shape) in (2, 4) else None
    if affine is None:
        return None
    value = lowering.value(source)
    target = lowering.features(value) if len(shape) == 2 else lowering.blocked(value)
    if target is None or len(np.unique(target.channels)) < len(target.channels):
        if not isinstance(target, Blocked):
            return None
        target = lowering.gathered(target)
    if isinstance(target, Blocked):
        target = lowering.stored(target)
    scale, shift = affine
    tail = lowering.fuse_tail(binding, shape[1], residual=False)
    vectors = scale * tail.scale, shift * tail.scale + tail.shift
    if isinstance(target, Blocked):
        kernel = Elementwise(target.buffer_shape, "affine", tail.activation)
        operands = [pack_channels(vector, target.channels, target.blocks, target.lanes) for vector in vectors]
    else:
        kernel = Elementwise((target.batch, target.size), "affine", tail.activation)
        operands = [pack_channels(vector, target.channels, 1, target.size)[0] for vector in vectors]
    return replace(target, expr=lowering.call(kernel, target.expr, *operands))
