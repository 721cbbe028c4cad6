"""How numbers are represented in few bits, and what has to be stored beside them: arithmetic, no tensor."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from search_spaces.errors import InputError, did_you_mean

SCALE_BITS = 32
"""Of a float32 scale, or of an entry of a codebook."""


MOST_BITS = 16


@dataclass(frozen=True, slots=True)
class Scheme:
    """A family of number formats.

    Attributes:
        least_bits, most_bits: that it is defined for.
        side_bits: bits stored for every set of numbers with a scale in common, given the bits of a number.
        activations: whether activations can be so represented, too.
    """

    least_bits: int
    most_bits: int
    side_bits: Callable[[int], int]
    activations: bool = True


def _scale(bits: int) -> int:
    return SCALE_BITS


SCHEMES: dict[str, Scheme] = {
    "symmetric": Scheme(2, 16, _scale),
    "asymmetric": Scheme(1, 16, lambda bits: SCALE_BITS + bits),  # and a zero point
    "power_of_two": Scheme(2, 8, _scale),
    "codebook": Scheme(1, 8, lambda bits: SCALE_BITS << bits, activations=False),
    "binary": Scheme(1, 1, _scale, activations=False),
    "ternary": Scheme(2, 2, _scale, activations=False),
    "dorefa": Scheme(1, 16, _scale),
    "fp16": Scheme(16, 16, lambda bits: 0),
    "bf16": Scheme(16, 16, lambda bits: 0),
}
"""By name; `automl.compression.quantisation` computes with them and cites their papers."""


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """How the weights of a layer, or the values it reads, are represented.

    Attributes:
        bits: of each number.
        scheme: one of `SCHEMES`.
        granularity: which numbers have a scale in common: "tensor" all, "channel" those of an output channel,
            "group:64" so many neighbours among the weights of an output channel.

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
