"""Scales, zero points, exponents and codebooks of packed weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from automl.compression.packing.bits import BitReader, BitWriter, IntArray, floats_of, patterns_of
from search_spaces.errors import InputError
from search_spaces.number_formats import SCALE_BITS, SCHEMES, NumberFormat

SIGNED = ("exponent",)
"""Integers that may be below 0; they are stored as two's complement."""


@dataclass(frozen=True, slots=True)
class _Field:
    """One kind of side data: `shape` numbers of `width` bits, float32 where those are 32."""

    name: str
    width: int
    shape: tuple[int, ...]

    @property
    def range(self) -> tuple[int, int]:
        """Least and largest integer."""
        if self.name in SIGNED:
            return -(1 << self.width - 1), (1 << self.width - 1) - 1
        return 0, (1 << self.width) - 1


def write_side(writer: BitWriter, side: Mapping[str, Tensor], shape: Sequence[int], format: NumberFormat) -> None:
    """Append the side data of weights of that shape.

    Raises:
        InputError: it is not that of the format.
    """
    fields = _fields(shape, format)
    if side.keys() != {field.name for field in fields}:
        raise InputError(
            f"the side data of {format.scheme!r} is {', '.join(field.name for field in fields) or 'none'}, got "
            f"{', '.join(side) or 'none'}"
        )
    for field in fields:
        writer.add(_numbers(side[field.name], field), field.width)


def read_side(reader: BitReader, shape: Sequence[int], format: NumberFormat) -> dict[str, Tensor]:
    """Take what `write_side` wrote."""
    found = {}
    for field in _fields(shape, format):
        numbers = reader.take(prod(field.shape), field.width, field.name in SIGNED).reshape(field.shape)
        found[field.name] = torch.from_numpy(floats_of(numbers) if field.width == SCALE_BITS else numbers)
    return found


def _fields(shape: Sequence[int], format: NumberFormat) -> list[_Field]:
    """Multiples of 32 bits for each set are float32 numbers, fewer one integer."""
    sets = format.sets(shape)
    found = []
    for name, bits in SCHEMES[format.scheme].side.items():
        width = bits(format.bits)
        many, rest = divmod(width, SCALE_BITS)
        if rest:
            found.append(_Field(name, width, (sets,)))
        else:
            found.append(_Field(name, SCALE_BITS, (sets,) if many == 1 else (sets, many)))
    return found


def _numbers(tensor: Tensor, field: _Field) -> IntArray:
    """Bit patterns or integers to write."""
    if tuple(tensor.shape) != field.shape:
        raise InputError(f"{field.name!r} of the weights is {list(field.shape)}, got {list(tensor.shape)}")
    array = tensor.detach().cpu().numpy()
    if field.width == SCALE_BITS:
        return patterns_of(array, field.name)
    least, most = field.range
    if array.dtype.kind != "i" or array.min() < least or array.max() > most:
        raise InputError(f"{field.name!r} of the weights holds whole numbers from {least} to {most}")
    return array.astype(np.int64)
