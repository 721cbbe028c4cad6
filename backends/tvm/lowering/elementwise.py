"""Operators on each element by itself: affine maps of channels, activations, sums and products."""

from dataclasses import replace

import numpy as np

from backends.fusion import ACTIVATIONS, FusedOperator, is_constant_over_pixels
from backends.tvm.kernels.elementwise import Elementwise
from backends.tvm.kernels.epilogue import Activation
from backends.tvm.lowering.channels import Channels, pack_channels
from backends.tvm.lowering.plan import Array, Planner, Promise, Rule, Tensors
from backends.tvm.lowering.rows import laid_out_like
from backends.tvm.lowering.tail import Affine, Tail, activation_of, affine_of, read_tail
from backends.tvm.lowering.values import Matrix, Packed, Plain, Value, pack_like
from search_spaces.operators import Operator, TensorInput

_OPERATIONS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "div": "divide", "maximum": "maximum", "minimum": "minimum",
}  # fmt: skip


def lower_activation(planner: Planner, fused: FusedOperator) -> Value | None:
    """An activation that nothing before it could take in."""
    activation = activation_of(fused.head)
    return None if activation is None else activated(planner, planner.source(fused), activation)


def activated(planner: Planner, value: Value, activation: Activation) -> Value | None:
    """The activation of each element; None for several values."""
    if isinstance(value, Packed):
        value = planner.stored(value)
    if not isinstance(value, Packed | Matrix | Plain):
        return None
    kernel = Elementwise(value.buffer.shape, "copy", activation)
    return replace(value, buffer=planner.call(kernel, value.buffer))


def lower_batch_norm(planner: Planner, fused: FusedOperator) -> Value | None:
    """A batch norm in evaluation that no operator before it could take in."""
    tail = read_tail(planner, fused)
    if tail is None:
        return None
    return scaled(planner, planner.source(fused), lambda tensors, _: tensors.batch_norm(fused.head), tail, 1)


def lower_binary(planner: Planner, fused: FusedOperator) -> Value | None:
    """A sum, difference, product, quotient, maximum or minimum of two values, or with a constant."""
    head, tail = fused.head, read_tail(planner, fused)
    if tail is None or head.argument("alpha") not in (None, 1) or head.argument("rounding_mode") is not None:
        return None
    fed = [name for name in head.inputs if not planner.operator(name).constant]
    if len(fed) == 2 or (len(head.inputs) == 1 and _same_twice(head)):
        return _of_two(planner, head, tail, planner.value(fed[0]), planner.value(fed[-1]))
    if len(fed) != 1 or head.kind not in ("add", "sub", "rsub", "mul", "div"):
        return None
    return _with_constant(planner, head, tail, fed[0])


def _same_twice(head: Operator) -> bool:
    return isinstance(head.argument("self"), TensorInput) and isinstance(head.argument("other"), TensorInput)


def _with_constant(planner: Planner, head: Operator, tail: Tail, name: str) -> Value | None:
    value = planner.value(name)
    if isinstance(value, tuple) or value.shape != planner.shape(head):
        return None
    constants = [planner.operator(other) for other in head.inputs if other != name]
    left = head.argument("self")
    on_left = isinstance(left, TensorInput) and head.inputs[left.index] == name
    if head.kind == "div" and not on_left:
        return None
    if not constants and not isinstance(head.argument("other"), int | float):
        return None
    rank = len(value.shape)
    axis = value.channel_dimension() if isinstance(value, Packed) else rank - 1 if isinstance(value, Matrix) else None
    affine = affine_of(planner, head, name)
    if not constants or (axis is not None and is_constant_over_pixels(constants[0], rank, axis)):
        return scaled(planner, value, affine, tail, axis)
    if (
        not isinstance(value, Packed)
        or head.kind not in ("add", "mul")
        or not _same_for_all(planner, value, constants[0])
    ):
        return None
    layout, other = planner.stored(value), constants[0].name
    shape = layout.buffer_shape[1:]
    kernel = Elementwise(layout.buffer_shape, _OPERATIONS[head.kind], tail.epilogue.activation, shape)

    def constant(tensors: Tensors) -> Array:
        return pack_like(tensors.constant(other).astype(np.float64), layout)[0]

    return replace(layout, buffer=planner.call(kernel, layout.buffer, constant))


def _same_for_all(planner: Planner, value: Packed, constant: Operator) -> bool:
    """Whether a constant is the same for every image."""
    if value.batch == 1:
        return True
    shape = planner.shape(constant)
    return value.dims[0] == ("n",) and (len(shape) < len(value.dims) or shape[0] == 1)


def scaled(planner: Planner, value: Value, affine: Affine, tail: Tail, axis: int | None) -> Value | None:
    """The affine map of channels, and the tail behind it.

    Args:
        planner: of the network.
        value: whose channels run along `axis`.
        affine: its scale and shift.
        tail: maps and activation behind it.
        axis: dimension of the channels; None where the map is the same for all.
    """
    if isinstance(value, Plain):
        value = (planner.packed(value) if len(value.shape) in (3, 4) else _rows(value)) or value
    if isinstance(value, Packed):
        if axis is not None and value.channel_dimension() != axis:
            return None
        if not value.channels.distinct or not value.channels.stored:
            value = planner.gathered(value)
        layout = value.blocks, value.lanes
    elif isinstance(value, Matrix) and value.channels.distinct:
        layout = 1, value.size
    else:
        return None
    channels = value.channels.flat
    behind = tail.affine(channels.count)
    kernel = Elementwise(value.buffer.shape, "affine", tail.epilogue.activation)

    def vector(index: int) -> Promise:
        def packed(tensors: Tensors) -> Array:
            scale, shift = affine(tensors, channels.count)
            factor, term = behind(tensors)
            values = pack_channels((scale * factor, shift * factor + term)[index], channels, *layout)
            return values if len(kernel.shape) == 5 else values.reshape(-1)

        return packed

    result = planner.call(kernel, value.buffer, vector(0), vector(1))
    if isinstance(value, Matrix):
        return replace(value, buffer=result)
    return tail.viewed(replace(value, buffer=result))


def _rows(value: Plain) -> Matrix | None:
    if len(value.shape) != 2:
        return None
    return Matrix(value.buffer, Channels.in_order(value.shape[1]), *value.shape)


def _of_two(planner: Planner, head: Operator, tail: Tail, one: Value, other: Value) -> Value | None:
    operation = _OPERATIONS.get(head.kind)
    if operation is None:
        return None
    activation = tail.epilogue.activation
    if isinstance(one, Matrix) and isinstance(other, Matrix) and one.shape == other.shape:
        first, second = planner.plain(one), planner.plain(other)
        kernel = Elementwise(first.shape, operation, activation)
        order = Channels.in_order(int(np.prod(first.shape[1:]))).positions.reshape(first.shape[1:])
        buffer = planner.call(kernel, first.buffer, second.buffer)
        return Matrix(buffer, Channels.of(order), first.shape[0], order.size)
    a, b = planner.packed(one), planner.packed(other)
    if a is None or b is None or len(a.dims) != len(b.dims):
        return None
    if _spread(b, a) and not _spread(a, b) and head.kind in ("add", "mul", "maximum", "minimum"):
        a, b = b, a
    b = laid_out_like(planner, b, a) or b
    if not _alike(a, b):
        return None
    if a.blocks != b.blocks or a.channels.flat is not b.channels.flat or not a.channels.stored:
        a, b = planner.in_order(a), planner.in_order(b)
    shape = None if a.buffer_shape == b.buffer_shape else b.buffer_shape
    kernel = Elementwise(a.buffer_shape, operation, activation, shape)
    return replace(a, buffer=planner.call(kernel, a.buffer, b.buffer))


def _spread(one: Packed, other: Packed) -> bool:
    """Whether the first is larger: it has pixels where the second has one."""
    return one.height * one.width > other.height * other.width == 1


def _alike(a: Packed, b: Packed) -> bool:
    """Whether each element of `a` meets the one of `b` at the same place of its buffer, or at its only pixel."""
    if a.batch != b.batch or a.channels.shape != b.channels.shape:
        return False
    if a.shape == b.shape:
        return (a.height, a.width) == (b.height, b.width) and all(
            a.over(place) == b.over(place) for place in range(len(a.dims))
        )
    if b.height * b.width != 1:
        return False
    return all(
        tuple(axis for axis in a.over(place) if axis not in ("h", "w")) == b.over(place) for place in range(len(a.dims))
    )


RULES: dict[str, Rule] = {
    **dict.fromkeys(sorted(ACTIVATIONS), lower_activation),
    **dict.fromkeys((*_OPERATIONS, "rsub"), lower_binary),
    "batch_norm": lower_batch_norm,
}
