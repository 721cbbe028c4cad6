"""What integer kernels share: their operands, and examples of them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from backends.tvm.kernels.base import Array, product
from backends.tvm.kernels.integer.dot import MOST_PRODUCTS
from backends.tvm.kernels.integer.epilogue import IntegerEpilogue
from backends.tvm.kernels.loops import WrittenKernel
from backends.tvm.target import Cpu

_SPREAD = 128 * 85.0
"""Root mean square of the product of a random uint8 and a random int8, roughly."""


class IntegerKernel(WrittenKernel):
    """Sums of products of uint8 activations and int8 weights, and their epilogue.

    Operands in calling order: source, weight, scale, bias, limits [2] where codes come out, table where the span is
    irregular, residual and residual_scale [1] where there is a residual.
    """

    epilogue: IntegerEpilogue

    @property
    def output_dtype(self) -> str:
        """The epilogue's."""
        return self.epilogue.output

    @property
    def operand_dtypes(self) -> Mapping[str, str]:
        """See the class."""
        return {"source": "uint8", "weight": "int8", "table": "int32", "residual": self.epilogue.residual}

    def named(self, operands: Sequence[Any]) -> dict[str, Any]:
        """The operands by name."""
        return dict(zip(self.operand_shapes, operands, strict=True))

    def example_operands(self, cpu: Cpu, generator: np.random.Generator) -> list[Array]:
        """Any codes; scales that spread the sums over all codes."""
        operands = self.named(super().example_operands(cpu, generator))
        spread = _SPREAD * math.sqrt(self.products)
        operands["scale"] = (generator.uniform(20, 80, operands["scale"].shape) / spread).astype(np.float32)
        operands["bias"] = generator.normal(128, 40, operands["bias"].shape).astype(np.float32)
        if "limits" in operands:
            operands["limits"] = np.array([3, 250], dtype=np.float32)
        if "residual_scale" in operands:
            operands["residual_scale"] = generator.uniform(0.2, 0.6, 1).astype(np.float32)
        return list(operands.values())

    @property
    def products(self) -> int:
        """Of each sum."""
        return round(self.work / product(self.output_shape))


def check_products(count: int) -> None:
    """Raises ValueError where so many products may not fit in a sum."""
    if count > MOST_PRODUCTS:
        raise ValueError(f"int32 holds sums of at most {MOST_PRODUCTS} products of 8-bit codes, not of {count}")
