"""One bit: the sign times the mean magnitude.

Rastegari et al., "XNOR-Net", ECCV 2016: of all alpha * B with B in {-1, +1}, B = sign(W) and alpha = mean |W| have the
least squared error. By chance (Courbariaux et al., "BinaryConnect", NeurIPS 2015): +alpha with probability
(w + alpha) / 2 alpha, clipped to [0, 1].
"""

import torch
from torch import Tensor

from automl.compression.quantisation.base import Choice, Codec, Side
from automl.compression.quantisation.granularity import Rows
from automl.compression.quantisation.rounding import to_level


def _encode(rows: Rows, bits: int, choice: Choice) -> tuple[Tensor, dict[str, Tensor]]:
    scale = rows.mean(rows.values.abs()).float()
    return to_level(rows.values, torch.cat([-scale, scale], dim=1), choice.generator), {"scale": scale[:, 0]}


def _decode(codes: Tensor, side: Side, bits: int) -> Tensor:
    return (2 * codes - 1).float() * side["scale"][:, None]


BINARY = Codec(_encode, _decode)
