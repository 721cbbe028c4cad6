"""What no rule takes: a fused operator's parts one by one, and in the end TVM's own code, tuned."""

import numpy as np

from backends.fusion import FusedOperator
from backends.tvm.lowering.plan import Planner, Promise
from backends.tvm.lowering.values import Buffer, Plain, Value
from backends.tvm.stock import StockOperator, TensorType
from search_spaces.errors import TrimtabError
from search_spaces.operators import Argument, Entries, Operator, TensorInput


def lower_rest(planner: Planner, fused: FusedOperator) -> Value:
    """The operators of a fused one apart; a single one by stock TVM.

    Raises:
        TrimtabError: an operator that cannot be handed to TVM.
    """
    if not fused.tail:
        return _stock(planner, fused.head)
    parts = [planner.lower(FusedOperator(operator)) for operator in (fused.head, *fused.tail)]
    return parts[-1]


def _stock(planner: Planner, operator: Operator) -> Value:
    target, arguments = operator.target, operator.arguments
    operands: list[Buffer | Promise] = []
    types: list[TensorType] = []
    for name in operator.inputs:
        source = planner.operator(name)
        if source.constant:
            operands.append(_constant(name))
            types.append((planner.shape(source), source.dtype))
        else:
            plain = planner.plain(planner.value(name))
            operands.append(plain.buffer)
            types.append((plain.shape, plain.buffer.dtype))
    if operator.layer is not None and operator.kind in ("conv", "conv_transpose", "linear"):
        target, arguments = _add_weights(planner, operator, operands, types)
    if not target:
        raise TrimtabError(f"operator {operator.name!r} ({operator.kind}) has no rule, and is none of torch's own")
    given = tuple((name, _whole(planner, operator, value)) for name, value in arguments)
    output = planner.shape(operator)
    kernel = StockOperator(f"aten.{target}", given, tuple(types), (output, operator.dtype))
    planner.fallbacks.append(operator.kind)
    return Plain(planner.call(kernel, *operands), output)


def _add_weights(
    planner: Planner, operator: Operator, operands: list[Buffer | Promise], types: list[TensorType]
) -> tuple[str, tuple[tuple[str, Argument], ...]]:
    """A layer as the function of torch's that it calls, its weight and bias two more operands."""
    spec = planner.layer(operator)
    channels = spec.out_channels, spec.in_channels // spec.groups
    if operator.kind == "conv_transpose":
        channels = spec.in_channels, spec.out_channels // spec.groups
    given: dict[str, Argument] = {"input": TensorInput(0), "weight": TensorInput(1), "bias": None}
    operands.append(lambda tensors: tensors.layer(operator)[0])
    types.append(((*channels, *spec.kernel), "float32"))
    if spec.bias:
        operands.append(lambda tensors: np.asarray(tensors.layer(operator)[1]))
        types.append(((spec.out_channels,), "float32"))
        given["bias"] = TensorInput(2)
    if operator.target:  # a function in the network, too
        return operator.target, tuple(({**dict(operator.arguments), **given}).items())
    if operator.kind == "linear":
        return "linear.default", tuple(given.items())
    given |= {"stride": spec.stride, "padding": spec.padding, "dilation": spec.dilation, "groups": spec.groups}
    return f"conv{len(spec.kernel)}d.default", tuple(given.items())


def _constant(name: str) -> Promise:
    return lambda tensors: tensors.constant(name)


def _whole(planner: Planner, operator: Operator, value: Argument) -> Argument:
    """The argument under the policy."""
    if isinstance(value, Entries):
        return planner.size(value)
    if isinstance(value, tuple):
        return tuple(_whole(planner, operator, item) for item in value)
    return value
