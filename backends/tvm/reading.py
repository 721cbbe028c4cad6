"""Reading Relax: names, shapes, attributes and uses of its expressions, in Python's types."""

from collections.abc import Sequence
from typing import Any

from tvm import relax

from backends.tvm.epilogue import Activation
from backends.tvm.kernel import Window


def operator_name(expr: Any) -> str:
    """Name of the operator that an expression calls, "" where it is no call of one."""
    return str(getattr(expr.op, "name", "")) if isinstance(expr, relax.Call) else ""


def shape_of(expr: Any) -> tuple[int, ...]:
    """Static shape of a tensor expression."""
    return ints(expr.ty.shape)


def image_size(expr: Any) -> tuple[int, int]:
    """Rows and columns of a feature map."""
    return _pair(shape_of(expr)[-2:])


def ints(values: Any) -> tuple[int, ...]:
    """TVM's array of numbers in Python's."""
    return tuple(int(value) for value in values)


def scalar(expr: Any) -> float:
    """The number that a scalar argument is.

    Raises:
        TypeError: it is not known before the network runs.
    """
    while not isinstance(expr, int | float):
        if not hasattr(expr, "value"):
            raise TypeError(f"{expr} is no constant")
        expr = expr.value
    return float(expr)


def window_of(kernel: Sequence[Any], attrs: Any) -> Window:
    """The window of a convolution or pooling in two dimensions, from the attributes of its call."""
    stride, padding, dilation = ints(attrs.strides), ints(attrs.padding), ints(attrs.dilation)
    top, left, bottom, right = padding
    return Window(_pair(ints(kernel)), _pair(stride), (top, left, bottom, right), _pair(dilation))


def activation_of(expr: Any) -> Activation | None:
    """The activation that an expression is, or None."""
    name = operator_name(expr)
    if name == "relax.nn.relu":
        return Activation(low=0.0)
    if name == "relax.nn.relu6":
        return Activation(low=0.0, high=6.0)
    if name == "relax.clip":
        return Activation(scalar(expr.args[1]), scalar(expr.args[2]))
    return None


def variables_in(expr: Any) -> list[Any]:
    """The variables in an expression, each as often as it occurs."""
    found: list[Any] = []

    def visit(part: Any) -> None:
        if isinstance(part, relax.Var):
            found.append(part)

    relax.analysis.post_order_visit(expr, visit)
    return found


def users_of(bindings: Sequence[Any], result: Any) -> dict[Any, list[Any]]:
    """The bindings that use each variable; None stands for the function's result."""
    users: dict[Any, list[Any]] = {}
    for expr, user in [*((binding.value, binding) for binding in bindings), (result, None)]:
        for variable in variables_in(expr):
            users.setdefault(variable, []).append(user)
    return users


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return first, second
