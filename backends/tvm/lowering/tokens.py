"""Attention, and sequences of tokens behind one another."""

from dataclasses import replace

import numpy as np

from backends.fusion import FusedOperator
from backends.tvm.kernels.attention import Attention
from backends.tvm.kernels.tokens import ConcatColumns
from backends.tvm.lowering.channels import ZERO, Channels
from backends.tvm.lowering.plan import Planner, Promise, Rule
from backends.tvm.lowering.rows import in_a_row
from backends.tvm.lowering.values import Buffer, Constant, Dims, Packed, Value, pack_like
from search_spaces.operators import TensorInput

_HEADS: Dims = (("n",), ("c",), ("w",), ("c",))
"""The view of what attention reads, [N, heads, T, D]."""


def lower_attention(planner: Planner, fused: FusedOperator) -> Value | None:
    """softmax(q k^T scale) v without a mask."""
    operator = fused.head
    if operator.argument("attn_mask") is not None or operator.argument("is_causal") or operator.argument("dropout_p"):
        return None
    given = [operator.argument(name) for name in ("query", "key", "value")]  # perhaps one value for all
    names = [operator.inputs[item.index] for item in given if isinstance(item, TensorInput)]
    if operator.argument("enable_gqa") or any(planner.operator(name).constant for name in names):
        return None
    query, key, value = (_heads(planner, planner.value(name)) for name in names)
    if query is None or key is None or value is None:
        return None
    heads, size = query.channels.shape
    if key.channels.shape != (heads, size) or value.channels.shape != (heads, size) or key.width != value.width:
        return None
    first = [int(part.channels.positions[0, 0]) // part.lanes for part in (query, key, value)]
    scale = operator.argument("scale")
    kernel = Attention(
        query.buffer_shape,
        key.buffer_shape,
        value.buffer_shape,
        heads,
        size,
        (first[0], first[1], first[2]),
        float(scale) if isinstance(scale, int | float) else None,
    )
    buffer = planner.call(kernel, query.buffer, key.buffer, value.buffer)
    batch, blocks, height, width, lanes = kernel.output_shape
    positions = np.arange(heads)[:, None] * kernel.blocks_per_head * lanes + np.arange(size)[None, :]
    return Packed(buffer, Channels.of(positions), batch, blocks, height, width, lanes, _HEADS)


def _heads(planner: Planner, value: Value) -> Packed | None:
    """The value [N, heads, T, D] as attention reads it: tokens in a row, each head from the start of a block."""
    packed = planner.packed(value)
    if packed is None or len(packed.dims) != 4:
        return None
    packed = in_a_row(planner, packed, 2)
    if packed is None or packed.over(2) not in ((), ("w",)) or packed.over(0) not in ((), ("n",)):
        return None
    if any(axis != "c" for place in (1, 3) for axis in packed.over(place)) or packed.height != 1:
        return None
    positions = packed.channels.positions.reshape(packed.shape[1], packed.shape[3])
    lanes = packed.lanes
    blocks = -(-positions.shape[1] // lanes)
    aligned = (np.arange(len(positions))[:, None] * blocks) * lanes + np.arange(positions.shape[1])[None, :]
    start = positions[0, 0]
    if start % lanes or not np.array_equal(positions, start + aligned):
        padded = np.pad(positions, ((0, 0), (0, blocks * lanes - positions.shape[1])), constant_values=ZERO)
        packed = planner.gathered(packed.with_dims(_HEADS, Channels.of(padded)))
        positions = aligned
    return packed.with_dims(_HEADS, Channels.of(positions))


def concatenate_tokens(planner: Planner, values: list[Value], place: int) -> Packed | None:
    """Sequences [N, T, C] behind one another; constants are the same for every image."""
    found = [value if isinstance(value, Constant) else _row(planner, value, place) for value in values]
    rows = [value for value in found if isinstance(value, Packed)]
    if not rows or any(value is None for value in found):
        return None
    like = rows[0]
    if any(row.dims != like.dims or row.channels is not like.channels or row.blocks != like.blocks for row in rows):
        return None
    shapes: list[tuple[int, ...]] = []
    operands: list[Buffer | Promise] = []
    for value in found:
        if isinstance(value, Constant):
            layout = replace(like, width=value.shape[place])
            shapes.append((1, *layout.buffer_shape[1:]))
            operands.append(_packed_constant(value.name, layout))
        elif isinstance(value, Packed):
            shapes.append(value.buffer_shape)
            operands.append(value.buffer)
    kernel = ConcatColumns(tuple(shapes))
    return replace(like, buffer=planner.call(kernel, *operands), width=kernel.output_shape[3])


def _row(planner: Planner, value: Value, place: int) -> Packed | None:
    packed = planner.packed(value)
    row = None if packed is None else in_a_row(planner, packed, place)
    if row is None or row.over(place) not in ((), ("w",)) or row.channel_dimension() is None:
        return None
    row = planner.in_order(row)
    dims: Dims = tuple(
        ("w",) if other == place else ("c",) if "c" in dim else ("n",) for other, dim in enumerate(row.dims)
    )
    return row.with_dims(dims, row.channels.flat) if len(dims) == 3 else None


def _packed_constant(name: str, layout: Packed) -> Promise:
    return lambda tensors: pack_like(tensors.constant(name)[:1].astype(np.float64), layout)


RULES: dict[str, Rule] = {"scaled_dot_product_attention": lower_attention}
