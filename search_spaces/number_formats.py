"""How numbers are represented in few bits, and what has to be stored beside them: arithmetic, no tensor.

`automl.compression.quantisation` computes with these schemes under the same names, and cites their papers.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from search_spaces.errors import InputError, did_you_mean

SCALE_BITS = 32
"""Of a float32 scale, or of an entry of a codebook."""

EXPONENT_BITS = 8
"""Of the largest exponent among powers of two: a signed byte reaches as far as float32 does."""

MOST_BITS = 16


def _scale(bits: int) -> int:
    return SCALE_BITS


@dataclass(frozen=True, slots=True)
class Scheme:
    """A family of number formats.

    Attributes:
        least_bits, most_bits: that it is defined for.
        side: what is stored for every set of numbers with a scale in common: by name, bits of each such set, given the
            bits of a number.
        activations: whether activations can be so represented, too.
        zero: whether one of the codes always is exactly zero. Where none is, zeros among the weights need an index
            that tells them.
    """

    least_bits: int
    most_bits: int
    side: Mapping[str, Callable[[int], int]] = field(default_factory=dict)
    activations: bool = True
    zero: bool = True

    def side_bits(self, bits: int) -> int:
        """Bits of scales, zero points and codebooks that are stored for every set."""
        return sum(each(bits) for each in self.side.values())


SCHEMES: dict[str, Scheme] = {
    "symmetric": Scheme(2, 16, {"scale": _scale}),
    "asymmetric": Scheme(1, 16, {"scale": _scale, "zero_point": lambda bits: bits}),
    "power_of_two": Scheme(2, 8, {"exponent": lambda bits: EXPONENT_BITS}),
    "codebook": Scheme(1, 8, {"codebook": lambda bits: SCALE_BITS << bits}, activations=False, zero=False),
    "binary": Scheme(1, 1, {"scale": _scale}, activations=False, zero=False),
    "ternary": Scheme(2, 2, {"scale": _scale}, activations=False),
    "dorefa": Scheme(1, 16, {"scale": _scale}, zero=False),
    "fp16": Scheme(16, 16),
    "bf16": Scheme(16, 16),
}
"""By name."""


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """How the weights of a layer, or the values it reads, are represented.

    Attributes:
        bits: of each number.
        scheme: one of `SCHEMES`.
        granularity: which numbers have a scale in common: "tensor" all, "channel" those of an output channel,
            "group:64" so many neighbours among the weights of an output channel (the last group may be smaller).

    Raises:
        InputError: the scheme is not known or has no such bits, or the granularity is none.
    """

    bits: int
    scheme: str = "symmetric"
    granularity: str = "channel"

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise InputError(f"there is no number scheme {self.scheme!r}{did_you_mean(self.scheme, SCHEMES)}")
        scheme = SCHEMES[self.scheme]
        if type(self.bits) is not int or not scheme.least_bits <= self.bits <= scheme.most_bits:
            allowed = f"from {scheme.least_bits} to {scheme.most_bits} bits"
            if scheme.least_bits == scheme.most_bits:
                allowed = f"{scheme.least_bits} bit{'s' if scheme.least_bits > 1 else ''}"
            raise InputError(f"the number scheme {self.scheme!r} has {allowed}, got {self.bits!r}")
        if self.granularity not in ("tensor", "channel") and group_size(self.granularity) is None:
            raise InputError(
                f"a granularity is 'tensor', 'channel' or 'group:N' with N of at least 1, got {self.granularity!r}"
            )

    @property
    def zero(self) -> bool:
        """Whether one of its codes always is exactly zero."""
        return SCHEMES[self.scheme].zero

    def sets(self, shape: Sequence[int]) -> int:
        """Sets of numbers with a scale in common, of a weight tensor [out, ...]."""
        if self.granularity == "tensor":
            return 1
        size = group_size(self.granularity)
        return shape[0] * (1 if size is None else -(-prod(shape[1:]) // size))

    def side_bits(self, shape: Sequence[int]) -> int:
        """Bits of all scales, zero points and codebooks of a weight tensor."""
        return self.sets(shape) * SCHEMES[self.scheme].side_bits(self.bits)


def group_size(granularity: str) -> int | None:
    """Numbers of a "group:N"; None for another granularity.

    >>> group_size("group:64"), group_size("channel")
    (64, None)
    """
    found = re.fullmatch(r"group:([1-9]\d{0,8})", granularity)
    return int(found[1]) if found else None
