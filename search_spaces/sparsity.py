"""Zeros among the weights of a layer: how many a pattern makes, and the bytes of what is left, by arithmetic alone.

A pattern divides a weight tensor into *atoms*, which become zero as a whole. What is stored is the weights of the atoms
that are left, and an index that tells which they are; of the forms of that index the smallest is taken.
`automl.compression.sparsity` chooses the atoms, `automl.compression.packing` writes every form.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from numbers import Real
from typing import Any

from search_spaces.errors import InputError, did_you_mean

PATTERNS = ("element", "row", "column", "kernel", "filter")
"""Beside "block:RxC" and "N:M". Row and column are those of the tensor's last two axes."""


@dataclass(frozen=True, slots=True)
class Sparsity:
    """Which weights of a layer may become zero together, and how many do.

    Attributes:
        pattern: "element"; "row" or "column" of the tensor's last two axes (of a kernel, or of a linear layer's
            matrix); "kernel", all weights from one input to one output channel; "filter", all of an output channel
            (of an input channel, where the convolution is transposed and its weight [in, out, *kernel]);
            "block:4x4", such tiles of the matrix [out, in * kernel]; "2:4", so many of four neighbouring input
            channels stay.
        share: of the atoms that become zero, in [0, 1); of "N:M" it follows from the pattern.

    Raises:
        InputError: the pattern is not known, or the share is none.
    """

    pattern: str
    share: float

    def __post_init__(self) -> None:
        share: Any = self.share
        number = isinstance(share, Real)  # numpy's, too
        if not number or not 0.0 <= share < 1.0:  # neither is nan
            raise InputError(f"the sparsity of a layer is a share of its weights in [0, 1), got {self.share!r}")
        if self.pattern in PATTERNS or block_of(self.pattern):
            return
        found = window_of(self.pattern)
        if found is None:
            hint = did_you_mean(self.pattern, PATTERNS)
            raise InputError(
                f"a sparsity pattern is one of {', '.join(PATTERNS)}, 'block:RxC' or 'N:M', got {self.pattern!r}{hint}"
            )
        if not 0 < found[0] <= found[1]:
            raise InputError(f"of an N:M pattern N is from 1 to M, got {self.pattern!r}")
        if abs(self.share - (1 - found[0] / found[1])) > 1e-9:
            raise InputError(
                f"the pattern {self.pattern!r} has the sparsity {1 - found[0] / found[1]:g}, got {self.share:g}; "
                "leave it out"
            )

    def grid(self, shape: Sequence[int]) -> tuple[int, int]:
        """(rows, columns) of the atoms of a weight tensor [out, in / groups, *kernel], as an index enumerates them.

        Raises:
            InputError: the pattern does not fit the shape.
        """
        outputs, inner = shape[0], prod(shape[1:])
        if block := block_of(self.pattern):
            if outputs % block[0] or inner % block[1]:
                raise InputError(
                    f"blocks of {block[0]}x{block[1]} do not divide a weight matrix of {outputs}x{inner}; choose "
                    "divisors of both"
                )
            return outputs // block[0], inner // block[1]
        if window := window_of(self.pattern):
            if shape[1] % window[1]:
                raise InputError(
                    f"the pattern {self.pattern!r} needs a multiple of {window[1]} input channels for each output "
                    f"channel, got {shape[1]}; choose another pattern"
                )
            return outputs * inner // window[1], window[1]
        if self.pattern == "kernel" and len(shape) < 3:
            raise InputError(f"a linear layer has no kernels, its weight is {list(shape)}; choose another pattern")
        match self.pattern:
            case "row":
                return prod(shape[:-2]), shape[-2]
            case "column":
                return prod(shape[:-2]), shape[-1]
            case "kernel":
                return outputs, shape[1]
            case "filter":
                return 1, outputs
            case _:
                return outputs, inner

    def atoms(self, shape: Sequence[int]) -> tuple[int, int]:
        """(all atoms, those that become zero) of a weight tensor: the nearest whole number, of two the larger.

        Raises:
            InputError: nothing would be left, or the pattern does not fit the shape.
        """
        rows, columns = self.grid(shape)
        total = rows * columns
        if window := window_of(self.pattern):
            return total, rows * (window[1] - window[0])  # exactly, whatever the share was rounded to
        zero = int(self.share * total + 0.5)  # round() would take the even one, and 5 weights lose 2 where 7 lose 4
        if zero >= total:
            raise InputError(
                f"a sparsity of {self.share:g} leaves none of the {total} {self.pattern!r} atoms of a weight tensor "
                f"{list(shape)}; lower it"
            )
        return total, zero

    def nonzeros(self, shape: Sequence[int]) -> int:
        """Weights that are left of a tensor; those that were zero before count."""
        total, zero = self.atoms(shape)
        return prod(shape) // total * (total - zero)


@dataclass(frozen=True, slots=True)
class Stored:
    """Weights as they are stored: the form of the index, and bits of weights and index together."""

    form: str
    bits: int


def stored(shape: Sequence[int], bits: int, sparsity: Sparsity | None = None, has_zero: bool = True) -> Stored:
    """The smallest way to store a weight tensor; of equal ones the first in the order of `sizes`.

    Args:
        shape: [out, in / groups, *kernel].
        bits: of each weight.
        sparsity: of the tensor; None where no weight is known to be zero.
        has_zero: whether zero is among the numbers of so many bits; see `sizes`.
    """
    found = sizes(shape, bits, sparsity, has_zero)
    form = min(found, key=lambda each: found[each])
    return Stored(form, found[form])


def sizes(shape: Sequence[int], bits: int, sparsity: Sparsity | None = None, has_zero: bool = True) -> dict[str, int]:
    """Bits of a weight tensor, index included, in every form that it can be stored in; arguments as of `stored`.

    "dense" has no index: zeros are stored as numbers, so there must be a zero among them (a binary number is none).
    """
    dense = {"dense": prod(shape) * bits}
    if sparsity is None:
        return dense
    values = sparsity.nonzeros(shape) * bits
    indexed = {form: values + index for form, index in _indexes(shape, sparsity)}
    return dense | indexed if has_zero or not sparsity.atoms(shape)[1] else indexed


def _indexes(shape: Sequence[int], sparsity: Sparsity) -> Iterator[tuple[str, int]]:
    """Bits of the index in each form."""
    rows, columns = sparsity.grid(shape)
    total, zero = sparsity.atoms(shape)
    left = total - zero
    if window := window_of(sparsity.pattern):
        yield "n:m", rows * window[0] * width_of(window[1] - 1)
    yield "bitmap", total
    low = rice_parameter(left, zero)
    yield "run_length", left * low + unary_bits(left, zero, low)
    # its row pointers outweigh the unary bits: never smaller than run_length, but it is what sparse kernels read
    yield "csr", (rows + 1) * width_of(left) + left * width_of(columns - 1)


def rice_parameter(left: int, zero: int) -> int:
    """Low bits of the run lengths that make the shortest index for so many atoms left and zero.

    Before each atom that is left stands the number of zero ones since the last: its low bits as they are, the rest in
    unary. With no low bit that is the bitmap. (Golomb, "Run-length encodings", 1966; Rice, 1979.)

    >>> [rice_parameter(left, 64 - left) for left in (32, 16, 8, 4, 1)]
    [0, 1, 2, 3, 5]
    """
    return min(range(width_of(zero) + 1), key=lambda low: left * low + unary_bits(left, zero, low))


def unary_bits(left: int, zero: int, low: int) -> int:
    """Bits that suffice for the unary parts of run lengths, however the atoms are spread."""
    return left + (zero >> low)


def width_of(largest: int) -> int:
    """Bits of whole numbers from 0 to the largest.

    >>> [width_of(largest) for largest in (0, 1, 3, 4)]
    [0, 1, 2, 3]
    """
    return largest.bit_length()


def block_of(pattern: str) -> tuple[int, int] | None:
    """(rows, columns) of "block:RxC", None for another pattern."""
    found = re.fullmatch(r"block:([1-9]\d{0,5})x([1-9]\d{0,5})", pattern)
    return (int(found[1]), int(found[2])) if found else None


def window_of(pattern: str) -> tuple[int, int] | None:
    """(N, M) of "N:M", None for another pattern."""
    found = re.fullmatch(r"(0|[1-9]\d{0,5}):(0|[1-9]\d{0,5})", pattern)
    return (int(found[1]), int(found[2])) if found else None
