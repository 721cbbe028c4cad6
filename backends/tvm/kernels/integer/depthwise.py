"""8-bit depthwise convolution."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from backends.tvm.kernels.base import Array, Expression, framed, pack_blocks, product, unpack_blocks
from backends.tvm.kernels.depthwise import PerChannel, Position
from backends.tvm.kernels.integer.epilogue import TO_CODES, IntegerEpilogue
from backends.tvm.kernels.integer.kernel import IntegerKernel, check_products


@dataclass(frozen=True, slots=True)
class IntegerDepthwise(IntegerKernel, PerChannel):
    """Depthwise convolution of codes.

    Operands: source, weight int8 [blocks, kh, kw, lanes], scale and bias [blocks, lanes], and those that
    `IntegerKernel` lists. What lies outside of the map contributes nothing.

    Raises:
        ValueError: too many products for an int32.
    """

    kind: ClassVar[str] = "depthwise_u8"

    epilogue: IntegerEpilogue = TO_CODES

    def __post_init__(self) -> None:
        check_products(product(self.window.kernel))

    @property
    def sums(self) -> str:
        """Of 8-bit products."""
        return "int32"

    @property
    def operand_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See the class."""
        channels = self.source[1], self.source[4]
        return {
            "source": self.source,
            "weight": (channels[0], *self.window.kernel, channels[1]),
            "scale": channels,
            "bias": channels,
            **self.epilogue.limits,
            **self.epilogue.residuals(self.output_shape),
        }

    def reduce(self, value: Expression, element: Expression, position: Position, operands: Sequence[Any]) -> Expression:
        """Weighted sum."""
        return value + element.astype("int32") * operands[0][position].astype("int32")

    def finish(self, value: Expression, index: tuple[Expression, ...], operands: Sequence[Any]) -> Expression:
        """The epilogue."""
        return self.epilogue.apply(value, (index[1], index[4]), index, self.named([None, *operands]))

    def reference(self, operands: Sequence[Array]) -> Array:
        """torch's convolution in float64, which is exact, of as many groups as there are channels."""
        named = self.named(operands)
        image = framed(unpack_blocks(named["source"]).astype(np.float64), self.window, self.size)
        filters = named["weight"].transpose(0, 3, 1, 2).reshape(-1, 1, *self.window.kernel).astype(np.float64)
        sums = F.conv2d(
            image,
            torch.from_numpy(filters),
            None,
            self.window.stride,
            dilation=self.window.dilation,
            groups=len(filters),
        )
        scale, bias = (named[name][:, None, None] for name in ("scale", "bias"))
        return self.epilogue.reference(pack_blocks(sums.long(), self.source[4]), scale, bias, named)
