"""From a sum of 8-bit products to what is stored: scale and bias, a residual, then a code or an activated number.

Bit for bit, with fma(a, b, c) = a*b + c rounded once:

    e = fma(float32(sum), scale, bias)
    e = fma(float32(residual), residual_scale, e)        where there is a residual
    uint8:   rint(min(max(e, limits[0]), limits[1]))     half to even
    float32: activation(e)

Zero points are in the bias (Jacob et al. 2018, arXiv:1712.05877, eq. 7), so no kernel knows any.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from tvm import te, tirx

from backends.tvm.kernels.base import Array, Expression
from backends.tvm.kernels.epilogue import IDENTITY, Activation
from backends.tvm.kernels.loops import constant

_TO_INTEGER = 1.5 * 2.0**23
"""Added to a number below 2^22, it leaves no bit for a fraction: the sum is rounded to an integer, half to even, which
stands in its last bits."""


@dataclass(frozen=True, slots=True)
class IntegerEpilogue:
    """The part of an integer epilogue that shapes the code.

    Attributes:
        residual: type of the residual, if there is one.
        output: type of what is stored.
        activation: of float32 outputs; that of codes is in their limits.

    Raises:
        ValueError: an activation of codes.
    """

    residual: Literal["none", "uint8", "float32"] = "none"
    output: Literal["uint8", "float32"] = "uint8"
    activation: Activation = IDENTITY

    def __post_init__(self) -> None:
        if self.output == "uint8" and self.activation != IDENTITY:
            raise ValueError(f"codes have limits, not an activation such as {self.activation.kind!r}")

    @property
    def limits(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of the operand that holds the limits, by its name, if there is one."""
        return {"limits": (2,)} if self.output == "uint8" else {}

    def residuals(self, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the residual and its scale, by name, for an output of that shape, if there are any."""
        return {} if self.residual == "none" else {"residual": shape, "residual_scale": (1,)}

    def apply(self, total: Expression, channel: Sequence[Expression], index: Any, operands: Mapping[str, Any]) -> Any:
        """The tensor expression of one output element.

        Args:
            total: the int32 sum.
            channel: index of its scale and bias.
            index: of the element in the output.
            operands: by name.
        """
        place = tuple(channel)
        value = fused(total.astype("float32"), operands["scale"][place], operands["bias"][place])
        if self.residual != "none":
            other = operands["residual"][tuple(index)].astype("float32")
            value = fused(other, operands["residual_scale"][0], value)
        if self.output == "float32":
            return self.activation.apply(value)
        return code(value, operands["limits"][0], operands["limits"][1])

    def reference(self, sums: Array, scale: Array, bias: Array, operands: Mapping[str, Array]) -> Array:
        """What comes of sums, of whose shape scale and bias are; the other operands by name."""
        value = exact_fused(sums.astype(np.float32), scale, bias)
        if self.residual != "none":
            value = exact_fused(operands["residual"].astype(np.float32), operands["residual_scale"], value)
        if self.output == "float32":
            return self.activation.reference(torch.from_numpy(value)).numpy()
        return rounded_code(value, *operands["limits"])


TO_CODES = IntegerEpilogue()
"""Scale and bias, then a code."""


def fused(a: Expression, b: Expression, c: Expression) -> Expression:
    """a*b + c rounded once, whatever the processor: without the instruction, by the C library."""
    return tirx.call_llvm_pure_intrin("float32", "llvm.fma", a, b, c)


def code(value: Expression, low: Expression, high: Expression) -> Expression:
    """The float32 number within [low, high], which is within [0, 255], rounded half to even to uint8."""
    kept = te.min(te.max(value, low), high)
    return tirx.reinterpret("int32", kept + constant(_TO_INTEGER)).astype("uint8")


def exact_fused(a: Array, b: Array, c: Array) -> Array:
    """float32 a*b + c rounded once. The product of two float32 is exact in float64. The sum is rounded to odd there,
    and rounding that to float32 gives what rounding the exact sum does (Boldo and Melquiond 2008, Emulation of FMA)."""
    product, addend = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + addend
    share = total - product
    rest = (product - (total - share)) + (addend - share)  # what the sum lost, exactly (Knuth's TwoSum)
    even = (total.view(np.int64) & 1) == 0
    odd = np.nextafter(total, np.copysign(np.inf, rest))
    return np.where((rest != 0) & even, odd, total).astype(np.float32)


def rounded_code(value: Array, low: Array, high: Array) -> Array:
    """NumPy's `code`."""
    return np.rint(np.minimum(np.maximum(value, low), high)).astype(np.uint8)
