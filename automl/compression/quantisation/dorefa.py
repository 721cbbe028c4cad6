"""Levels between -1 and 1 for weights squashed by tanh, none of them zero.

Zhou et al., "DoReFa-Net", arXiv 1606.06160: u = tanh(w) / (2 max |tanh(w)|) + 1/2 is rounded to k bits, and the weight
becomes 2 u - 1; at one bit, sign(w) times mean |w|. The paper trains networks from scratch, where the batch norm that
follows finds the scale. Here trained weights are to be approximated, so each set has the scale of least squared error,
at any number of bits; at one bit that is the paper's mean |w|. By chance it is u that is rounded.
"""

from torch import Tensor

from automl.compression.quantisation.base import Choice, Codec, Side
from automl.compression.quantisation.granularity import Rows
from automl.compression.quantisation.rounding import to_integer


def squash(rows: Tensor) -> Tensor:
    """tanh(w) / max |tanh(w)| of each set, in [-1, 1]; 0 where all are."""
    squashed = rows.tanh()
    largest = squashed.abs().amax(1, keepdim=True)
    return squashed / largest.masked_fill(largest == 0, 1.0)


def _levels(codes: Tensor, bits: int) -> Tensor:
    return 2 * codes / ((1 << bits) - 1) - 1


def _encode(rows: Rows, bits: int, choice: Choice) -> tuple[Tensor, dict[str, Tensor]]:
    steps = (squash(rows.values) / 2 + 0.5) * ((1 << bits) - 1)
    codes = to_integer(steps, choice.generator).long()
    levels = _levels(codes.double(), bits)
    scale = rows.mean(rows.values * levels) / rows.mean(levels.square()).clamp(min=1e-300)
    return codes, {"scale": scale.float()[:, 0]}


def _decode(codes: Tensor, side: Side, bits: int) -> Tensor:
    return (_levels(codes.double(), bits) * side["scale"][:, None]).float()


DOREFA = Codec(_encode, _decode)
