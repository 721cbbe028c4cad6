"""Zero and powers of two: a multiplication becomes a shift.

Zhou et al., "Incremental Network Quantization", ICLR 2017 (INQ): the largest power is 2 ** floor(log2(4/3 max|w|)), the
one nearest to the largest weight, and each weight goes to the nearest level. Of b bits one code is zero and the others
are pairs +-2 ** e of 2 ** (b - 1) - 1 exponents in a row, of which the largest is stored for every set.
"""

import torch
from torch import Tensor

from automl.compression.quantisation.base import Choice, Codec, Side
from automl.compression.quantisation.calibration import bounds
from automl.compression.quantisation.granularity import Rows
from automl.compression.quantisation.rounding import to_level

EXPONENTS = (-128, 127)
"""What a signed byte holds."""


def magnitudes(bits: int) -> int:
    """Number of exponents."""
    return (1 << (bits - 1)) - 1


def top_exponent(high: Tensor) -> Tensor:
    """Of the power of two nearest to each number >= 0, int64; the least one for zero."""
    return torch.log2(high.double() * 4 / 3).floor().clamp(*EXPONENTS).long()


def levels(exponent: Tensor, bits: int) -> Tensor:
    """All levels in ascending order, float32 [sets, 2 ** bits - 1], given the largest exponents [sets].

    What is smaller than any float32 is zero.
    """
    count = magnitudes(bits)
    powers = torch.exp2((exponent[:, None] - torch.arange(count, device=exponent.device)).double()).float()
    return torch.cat([-powers, torch.zeros_like(powers[:, :1]), powers.flip(1)], dim=1)


def exponents_of(rows: Rows, bits: int, method: str) -> Tensor:
    """The largest exponent of each set, int64 [sets], by a method of `calibration`."""

    def represent(low: Tensor, high: Tensor) -> Tensor:
        found = levels(top_exponent(high)[:, 0], bits).double()
        return found.gather(1, to_level(rows.values, found))

    _, high = bounds(rows, method, 1 << (bits - 1), represent, symmetric=True)
    return top_exponent(high)[:, 0]


def _encode(rows: Rows, bits: int, choice: Choice) -> tuple[Tensor, dict[str, Tensor]]:
    exponent = exponents_of(rows, bits, choice.method)
    return to_level(rows.values, levels(exponent, bits), choice.generator), {"exponent": exponent}


def _decode(codes: Tensor, side: Side, bits: int) -> Tensor:
    return levels(side["exponent"], bits).gather(1, codes)


POWER_OF_TWO = Codec(_encode, _decode)
