"""The numbers behind 8-bit codes: what an integer layer computes with, and the grid of codes that it reads.

A value is scale * (code - zero point) (Jacob et al., CVPR 2018). Codes are stored as uint8, less a shift that makes the
code of zero 0 where the layer reads nothing below zero: then zero padding need not be stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.integers import LayerIntegers
from search_spaces.errors import TrimtabError

if TYPE_CHECKING:
    from backends.tvm.lowering.plan import Array, Tensors


@dataclass(frozen=True, slots=True)
class Numbers:
    """A grid of stored codes: value = scale * (code - zero), codes from least to most."""

    scale: float
    zero: int
    least: int
    most: int

    def code(self, value: float) -> float:
        """The code of a value, whether there is room for it or not."""
        return float(np.rint(value / self.scale)) + self.zero

    def limits(self, low: float, high: float) -> "Array":
        """[2] float32: the least and the largest code of the values between two."""
        bounds = max(self.least, self.code(low)), min(self.most, self.code(high))
        return np.array(bounds, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Grid:
    """The grid of codes that a layer reads, before its numbers are known.

    Attributes:
        layer: its name.
        shift: code that is stored as 0.
        from_zero: whether the code of zero is stored as 0.
    """

    layer: str
    shift: int
    from_zero: bool

    def numbers(self, tensors: "Tensors") -> Numbers:
        """Its numbers.

        Raises:
            TrimtabError: zero has another code than the layer's input lets one expect.
        """
        found = tensors.integers(self.layer)
        zero = found.zero_point - self.shift
        if self.from_zero and zero:
            raise TrimtabError(
                f"layer {self.layer!r} reads nothing below zero, and the code of zero is {found.zero_point}; calibrate "
                "it on images of the data set"
            )
        return Numbers(found.scale, zero, found.least - self.shift, found.most - self.shift)

    def zero(self, tensors: "Tensors") -> "Array":
        """[1] uint8: the code of zero."""
        return np.array([self.numbers(tensors).zero], dtype=np.uint8)

    def quantising(self, tensors: "Tensors") -> "Array":
        """[4] float32: 1 / scale, the code of zero, the least and the largest code."""
        grid = self.numbers(tensors)
        least = max(grid.least, 0)
        return np.array([1.0 / grid.scale, grid.zero, least, grid.most], dtype=np.float32)

    def dequantising(self, tensors: "Tensors") -> "Array":
        """[2] float32: the scale, and the value of code 0."""
        grid = self.numbers(tensors)
        return np.array([grid.scale, -grid.scale * grid.zero], dtype=np.float32)


class WithIntegers:
    """A network's constants, and its layers that compute in integers.

    Args:
        tensors: the constants.
        integers: by layer.
    """

    def __init__(self, tensors: Any, integers: Mapping[str, LayerIntegers]) -> None:
        self.layer = tensors.layer
        self.batch_norm = tensors.batch_norm
        self.constant = tensors.constant
        self.integers = integers.__getitem__
