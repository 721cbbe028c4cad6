"""The schemes by name, and the two functions that the rest of the library calls."""

import torch
from torch import Tensor

from automl.compression.quantisation.base import Choice, Codec, Quantised, Side
from automl.compression.quantisation.binary import BINARY
from automl.compression.quantisation.calibration import WEIGHT_METHODS, check_method
from automl.compression.quantisation.codebook import CODEBOOK
from automl.compression.quantisation.dorefa import DOREFA
from automl.compression.quantisation.granularity import join, rows_of, split
from automl.compression.quantisation.half import BF16, FP16
from automl.compression.quantisation.power_of_two import POWER_OF_TWO
from automl.compression.quantisation.ternary import TERNARY
from automl.compression.quantisation.uniform import ASYMMETRIC, SYMMETRIC
from search_spaces.errors import InputError
from search_spaces.number_formats import NumberFormat

SCHEMES: dict[str, Codec] = {
    "symmetric": SYMMETRIC,
    "asymmetric": ASYMMETRIC,
    "power_of_two": POWER_OF_TWO,
    "codebook": CODEBOOK,
    "binary": BINARY,
    "ternary": TERNARY,
    "dorefa": DOREFA,
    "fp16": FP16,
    "bf16": BF16,
}
"""Those of `search_spaces.number_formats`, which says what bits they have and what is stored beside them."""


def quantise(
    weight: Tensor,
    format: NumberFormat,
    *,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    method: str = "min_max",
) -> Quantised:
    """Represent a weight tensor in a number format; the tensor given is not changed.

    Args:
        weight: [out, ...], finite, floating point.
        format: bits, scheme and granularity.
        mask: True for the weights that stay; the others become, or stay, exactly zero, and no scale depends on them.
        generator: rounds by chance (Gupta et al., ICML 2015); to the nearest where None.
        method: one of `calibration.WEIGHT_METHODS`, which finds the range of schemes that have one: symmetric,
            asymmetric, power_of_two.

    Returns:
        What is stored, and the values it stands for: `dequantise(codes, side, format, mask)`, exactly.

    Raises:
        InputError: weights that are not finite or none at all, a mask of another shape, an unknown method, or numbers
            that the format cannot hold.
    """
    check_method(method, WEIGHT_METHODS)
    _check(weight, mask)
    rows = rows_of(weight, mask, format.granularity)
    found, side = SCHEMES[format.scheme].encode(rows, format.bits, Choice(method, generator))
    codes = join(found, weight.shape)
    if mask is not None and not format.zero:
        codes = codes.masked_fill(~mask, 0)
    return Quantised(dequantise(codes, side, format, mask), codes, side, format, mask, method)


def dequantise(codes: Tensor, side: Side, format: NumberFormat, mask: Tensor | None = None) -> Tensor:
    """The float32 values of codes.

    Args:
        codes: int64 [out, ...].
        side: as `quantise` gave it.
        format: of the codes.
        mask: False where a value is zero whatever its code: needed where the scheme has none for zero.
    """
    rows = SCHEMES[format.scheme].decode(split(codes, format.granularity), side, format.bits)
    values = join(rows, codes.shape)
    return values if mask is None else values.masked_fill(~mask, 0.0)


def _check(weight: Tensor, mask: Tensor | None) -> None:
    if not weight.is_floating_point() or weight.ndim < 1 or not weight.numel():
        raise InputError(
            f"weights to quantise are a floating-point tensor [out, ...], got {weight.dtype} of shape "
            f"{list(weight.shape)}"
        )
    if not torch.isfinite(weight).all():
        raise InputError("weights to quantise are finite, some are NaN or infinite; check the checkpoint")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != weight.shape):
        raise InputError(
            f"a mask is a boolean tensor of the weight's shape {list(weight.shape)}, got {mask.dtype} of shape "
            f"{list(mask.shape)}"
        )
