"""What a scheme is to the rest of the package, and what quantising a weight gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from automl.compression.quantisation.granularity import Rows
from search_spaces.number_formats import NumberFormat

Side = Mapping[str, Tensor]
"""What is stored beside the codes, by name (see `search_spaces.number_formats.Scheme.side`), its first axis the sets:
"scale" float32, "zero_point" and "exponent" int64 [sets]; "codebook" float32 [sets, 2 ** bits]."""


@dataclass(frozen=True)
class Choice:
    """How values are chosen where a format leaves it open.

    Attributes:
        method: that finds the range of a set; see `calibration`. Schemes without a range have their own rule.
        generator: rounds by chance; None rounds to the nearest.
    """

    method: str = "min_max"
    generator: torch.Generator | None = None


@dataclass(frozen=True)
class Codec:
    """A number scheme on tensors.

    Attributes:
        encode: (rows, bits, choice) -> codes int64 [sets, size] in [0, 2 ** bits), side data. A zero that is not valid
            becomes a zero again, unless the scheme has none.
        decode: (codes [sets, size], side data, bits) -> values [sets, size] in float32.
    """

    encode: Callable[[Rows, int, Choice], tuple[Tensor, dict[str, Tensor]]]
    decode: Callable[[Tensor, Side, int], Tensor]


@dataclass(frozen=True, eq=False)
class Quantised:
    """A quantised weight tensor.

    Attributes:
        values: float32, shaped like the weight: what the network computes with.
        codes: int64, shaped like the weight, in [0, 2 ** bits): what is stored; 0 where the mask holds a zero that the
            scheme has no code for.
        side: scales, zero points, exponents or codebooks, by name.
        format: of the codes.
        mask: True for the weights that stay, None where all do.
        method: that found the ranges; see `calibration`.
    """

    values: Tensor
    codes: Tensor
    side: Side
    format: NumberFormat
    mask: Tensor | None = None
    method: str = "min_max"
