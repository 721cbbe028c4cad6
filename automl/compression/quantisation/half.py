"""Floating point in 16 bits: IEEE 754 half precision (fp16) and bfloat16 (Wang & Kanwar 2019), which has float32's
range. The codes are the bit patterns; to the nearest as torch casts, ties to even.
"""

import torch
from torch import Tensor

from automl.compression.quantisation.base import Choice, Codec, Side
from automl.compression.quantisation.granularity import Rows
from search_spaces.errors import InputError

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def check_range(largest: float, scheme: str) -> None:
    """InputError where a number of that magnitude would become infinite."""
    if not torch.isfinite(torch.tensor(largest, dtype=torch.float32).to(DTYPES[scheme])):
        limit = torch.finfo(DTYPES[scheme]).max
        raise InputError(f"{scheme} reaches to {limit:g}, got numbers up to {largest:g}; choose another scheme")


def _codec(scheme: str) -> Codec:
    dtype = DTYPES[scheme]

    def encode(rows: Rows, bits: int, choice: Choice) -> tuple[Tensor, dict[str, Tensor]]:
        values = rows.values.float()
        check_range(float(values.abs().amax()), scheme)
        nearest = values.to(dtype)
        codes = nearest.view(torch.int16).long() & 0xFFFF
        if choice.generator is None:
            return codes, {}
        # sign and magnitude: one code less is the neighbour towards zero, whichever the sign
        below = codes - (nearest.double().abs() > rows.values.abs()).long()
        low, high = (decode(each, {}, bits).double().abs() for each in (below, below + 1))
        share = (rows.values.abs() - low) / (high - low)
        chance = torch.rand(values.shape, generator=choice.generator, dtype=torch.float64, device=values.device)
        return below + (chance < share).long(), {}

    def decode(codes: Tensor, side: Side, bits: int) -> Tensor:
        signed = codes - ((codes >> 15) << 16)
        return signed.to(torch.int16).view(dtype).float()

    return Codec(encode, decode)


FP16 = _codec("fp16")
BF16 = _codec("bf16")
