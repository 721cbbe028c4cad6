"""Constant expressions, computed in numpy: TVM's own folding compiles each of them, which takes seconds."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.tvm.reading import ints, operator_name, scalar, shape_of

Array = npt.NDArray[Any]


def fold(expr: Any, constant: Callable[[Any], Array | None]) -> Array | None:
    """The value of a call whose tensor arguments are all constant, or None where it is no such call.

    Args:
        expr: the call.
        constant: the value of an argument that is constant, None of one that is not.
    """
    name = operator_name(expr)
    if name == "relax.arange":
        start, stop, step = (scalar(argument) for argument in expr.args)
        return np.arange(start, stop, step).astype(str(expr.ty.dtype))
    evaluate = _UNARY.get(name)
    if evaluate is None:
        return None
    array = constant(expr.args[0])
    return None if array is None else evaluate(array, expr)


_UNARY: dict[str, Callable[[Array, Any], Array]] = {
    "relax.reshape": lambda array, expr: array.reshape(shape_of(expr)),
    "relax.expand_dims": lambda array, expr: array.reshape(shape_of(expr)),
    "relax.squeeze": lambda array, expr: array.reshape(shape_of(expr)),
    "relax.permute_dims": lambda array, expr: array.transpose(
        None if expr.attrs.axes is None else ints(expr.attrs.axes)
    ),
    "relax.astype": lambda array, expr: array.astype(str(expr.ty.dtype)),
    "relax.zeros_like": lambda array, expr: np.zeros_like(array),
}


def per_channel(array: Array, rank: int, channels: int) -> npt.NDArray[np.float64] | None:
    """The constant as one float64 a channel, where broadcasting it to a tensor of the rank varies along axis 1 only."""
    if array.ndim > rank:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    if any(extent != 1 for axis, extent in enumerate(shape) if axis != 1) or shape[1] not in (1, channels):
        return None
    return np.broadcast_to(array.reshape(shape[1]), (channels,)).astype(np.float64)
