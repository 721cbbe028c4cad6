"""Layer norm, group norm and softmax."""

from dataclasses import replace

import numpy as np

from backends.fusion import FusedOperator
from backends.tvm.kernels.normalisation import GroupNorm, LayerNorm, Softmax
from backends.tvm.lowering.channels import Channels, pack_channels
from backends.tvm.lowering.plan import Planner, Promise, Rule
from backends.tvm.lowering.values import Packed, Value
from search_spaces.operators import Operator, TensorInput


def lower_layer_norm(planner: Planner, fused: FusedOperator) -> Value | None:
    """Over the channels, which are the last dimension."""
    shape = fused.head.argument("normalized_shape")
    value = _with_channels(planner, fused, -1)
    if value is None or not isinstance(shape, tuple) or len(shape) != 1:
        return None
    kernel = LayerNorm(value.buffer_shape, value.channels.count, _eps(fused.head))
    return replace(value, buffer=planner.call(kernel, value.buffer, *_factors(fused.head, value)))


def lower_group_norm(planner: Planner, fused: FusedOperator) -> Value | None:
    """Over the pixels and the channels of each group; an instance norm has a channel a group."""
    value = planner.feature_map(planner.source(fused))
    if value is None:
        return None
    value = planner.in_order(value)
    groups = fused.head.argument("num_groups") if fused.head.kind == "group_norm" else value.channels.count
    if not isinstance(groups, int) or fused.head.argument("running_mean") is not None or value.channels.count % groups:
        return None
    kernel = GroupNorm(value.buffer_shape, value.channels.count, groups, _eps(fused.head))
    return replace(value, buffer=planner.call(kernel, value.buffer, *_factors(fused.head, value)))


def lower_softmax(planner: Planner, fused: FusedOperator) -> Value | None:
    """Over the channels."""
    dimension = fused.head.argument("dim")
    value = _with_channels(planner, fused, dimension) if isinstance(dimension, int) else None
    if value is None:
        return None
    return replace(value, buffer=planner.call(Softmax(value.buffer_shape, value.channels.count), value.buffer))


def _with_channels(planner: Planner, fused: FusedOperator, dimension: int) -> Packed | None:
    """The source with its channels in order, if those are what the dimension runs over."""
    value = planner.packed(planner.source(fused))
    if value is None or value.channel_dimension() != dimension % len(value.dims):
        return None
    return planner.in_order(value)


def _eps(operator: Operator) -> float:
    eps = operator.argument("eps")
    return float(eps) if isinstance(eps, int | float) else 1e-5


def _factors(operator: Operator, value: Packed) -> tuple[Promise, Promise]:
    """Promises of gamma and beta [blocks, lanes]."""
    count, channels = value.channels.count, Channels.in_order(value.channels.count)

    def factor(name: str, default: float) -> Promise:
        given = operator.argument(name)
        source = operator.inputs[given.index] if isinstance(given, TensorInput) else None
        return lambda tensors: pack_channels(
            np.full(count, default) if source is None else tensors.constant(source), channels, value.blocks, value.lanes
        )

    return factor("weight", 1.0), factor("bias", 0.0)


RULES: dict[str, Rule] = {
    "layer_norm": lower_layer_norm,
    "group_norm": lower_group_norm,
    "instance_norm": lower_group_norm,
    "softmax": lower_softmax,
}
