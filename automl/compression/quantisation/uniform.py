"""Equally spaced levels: value = scale * (code - zero point).

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018;
Krishnamoorthi, arXiv 1806.08342. Asymmetric: the levels span from the lowest to the highest number, zero included, and
the zero point is the code of zero. Symmetric: the code of zero is the middle one, and the lowest code is not used, so
that -x is represented wherever x is (as ONNX Runtime and TensorRT expect of weights).

An unclipped number is at most half a step (a whole one, by chance) from its level.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from automl.compression.quantisation.base import Choice, Codec, Side
from automl.compression.quantisation.calibration import bounds
from automl.compression.quantisation.granularity import Rows
from automl.compression.quantisation.rounding import to_integer

TINY = torch.finfo(torch.float32).tiny
HUGE = torch.finfo(torch.float32).max


@dataclass(frozen=True, eq=False)
class Grid:
    """Levels of one or several sets.

    Attributes:
        scale: step between levels, float32 > 0, of any shape.
        zero_point: code of zero, int64, shaped like the scale.
        least, most: codes that are used.
    """

    scale: Tensor
    zero_point: Tensor
    least: int
    most: int

    @classmethod
    def spanning(cls, low: Tensor, high: Tensor, bits: int, symmetric: bool) -> "Grid":
        """The grid from low <= 0 to high >= 0; of a range that is a single point the scale is 1."""
        least, most = code_range(bits, symmetric)
        scale = ((high - low) / (most - least)).clamp(TINY, HUGE).float()
        scale = torch.where(high > low, scale, 1.0)
        if symmetric:
            return cls(scale, torch.full_like(scale, middle(bits), dtype=torch.int64), least, most)
        return cls(scale, (-low / scale.double()).round().clamp(least, most).long(), least, most)

    def codes(self, values: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Codes of float64 values, int64."""
        steps = (values / self.scale.double()).clamp(self.least - self.zero_point, self.most - self.zero_point)
        return to_integer(steps, generator).long() + self.zero_point

    def values(self, codes: Tensor) -> Tensor:
        """Values of codes, float32."""
        return (codes - self.zero_point).float() * self.scale


def code_range(bits: int, symmetric: bool) -> tuple[int, int]:
    """The least and the largest code that are used."""
    return int(symmetric), (1 << bits) - 1


def middle(bits: int) -> int:
    """Code of zero in a symmetric grid."""
    return 1 << (bits - 1)


def grid_of(rows: Rows, bits: int, method: str, *, symmetric: bool) -> Grid:
    """The grid of each set, scale and zero point [sets, 1], by a method of `calibration`."""

    def represent(low: Tensor, high: Tensor) -> Tensor:
        grid = Grid.spanning(low, high, bits, symmetric)
        return grid.values(grid.codes(rows.values)).double()

    one_sided = not symmetric and bool((rows.values >= 0).all() or (rows.values <= 0).all())
    levels = 1 << bits if one_sided else 1 << (bits - 1)
    return Grid.spanning(*bounds(rows, method, levels, represent, symmetric=symmetric), bits, symmetric)


def _encode_symmetric(rows: Rows, bits: int, choice: Choice) -> tuple[Tensor, dict[str, Tensor]]:
    grid = grid_of(rows, bits, choice.method, symmetric=True)
    return grid.codes(rows.values, choice.generator), {"scale": grid.scale[:, 0]}


def _decode_symmetric(codes: Tensor, side: Side, bits: int) -> Tensor:
    return (codes - middle(bits)).float() * side["scale"][:, None]


def _encode_asymmetric(rows: Rows, bits: int, choice: Choice) -> tuple[Tensor, dict[str, Tensor]]:
    grid = grid_of(rows, bits, choice.method, symmetric=False)
    side = {"scale": grid.scale[:, 0], "zero_point": grid.zero_point[:, 0]}
    return grid.codes(rows.values, choice.generator), side


def _decode_asymmetric(codes: Tensor, side: Side, bits: int) -> Tensor:
    return (codes - side["zero_point"][:, None]).float() * side["scale"][:, None]


SYMMETRIC = Codec(_encode_symmetric, _decode_symmetric)
ASYMMETRIC = Codec(_encode_asymmetric, _decode_asymmetric)
