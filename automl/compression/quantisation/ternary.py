"""Zero or plus or minus a scale.

Li et al., "Ternary Weight Networks", arXiv 1605.04711 (TWN): weights beyond delta = 0.7 mean |W| keep their sign, and
alpha is the mean magnitude of those, which has the least squared error given delta. By chance: between the neighbours
of 0 and +-alpha.
"""

import torch
from torch import Tensor

from automl.compression.quantisation.base import Choice, Codec, Side
from automl.compression.quantisation.granularity import Rows
from automl.compression.quantisation.rounding import to_level

THRESHOLD = 0.7
"""Of the mean magnitude: near the optimum for weights that are normally or uniformly distributed."""


def _encode(rows: Rows, bits: int, choice: Choice) -> tuple[Tensor, dict[str, Tensor]]:
    size = rows.values.abs()
    beyond = size > THRESHOLD * rows.mean(size)
    scale = Rows(rows.values, beyond).mean(size).float()
    side = {"scale": scale[:, 0]}
    if choice.generator is not None:
        levels = torch.cat([-scale, torch.zeros_like(scale), scale], dim=1)
        return to_level(rows.values, levels, choice.generator), side
    return 1 + torch.where(beyond, rows.values.sign(), 0.0).long(), side


def _decode(codes: Tensor, side: Side, bits: int) -> Tensor:
    return (codes - 1).float() * side["scale"][:, None]


TERNARY = Codec(_encode, _decode)
