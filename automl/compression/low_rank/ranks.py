"""Ranks that keep a share of the energy, or cost a share of the weights."""

from bisect import bisect_right
from collections.abc import Iterator

import torch
from torch import Tensor

from automl.compression.low_rank.base import check_finite
from automl.compression.low_rank.layer import dense_spec
from automl.compression.low_rank.registry import METHODS
from search_spaces.errors import InputError
from search_spaces.factorisations import Rank, fitting
from search_spaces.layers import LayerSpec

ROUNDING = 1e-12
"""Share of the energy below which singular values are the rounding of float32 weights."""


def rank_by_energy(weight: Tensor, method: str, energy: float) -> Rank:
    """The least ranks that keep a share of the squared singular values.

    Of "tucker2" each rank keeps that share of its own unfolding, as the truncated higher-order SVD does (De Lathauwer
    et al., SIAM J. Matrix Anal. Appl. 2000): a squared error of at most 2 (1 - energy) of the weights' squares.

    Args:
        weight: of an ungrouped layer, [out, in, *kernel].
        method: one of `METHODS`.
        energy: in (0, 1]; 1 keeps all but rounding. Such ranks may save nothing, which `factorise` then says.

    Raises:
        InputError: the method is not known or does not fit the weight, the weight is not finite, or energy is no share.
    """
    if not 0.0 < energy <= 1.0:  # nan, too
        raise InputError(f"a rank keeps a share of the squared singular values in (0, 1], got energy={energy}")
    spec = dense_spec(weight)
    found = fitting(spec, method)
    check_finite(weight)
    unfoldings = METHODS[method].unfoldings(weight.detach().double())
    return found.usable(spec, tuple(_least(matrix, energy) for matrix in unfoldings))


def _least(matrix: Tensor, energy: float) -> int:
    squares = torch.linalg.svdvals(matrix).square()
    kept = squares.cumsum(0)
    return 1 + int((kept < (energy - ROUNDING) * kept[-1]).sum())


def rank_by_ratio(spec: LayerSpec, method: str, ratio: float) -> Rank:
    """The largest ranks whose weights are at most a share of the layer's.

    The two ranks of "tucker2" are the same share of the layer's channels, as near as whole numbers can be.

    Args:
        spec: the whole layer; see `layer_spec` for that of a module.
        method: one of `METHODS`.
        ratio: in (0, 1).

    Raises:
        InputError: the method is not known or does not fit the layer, ratio is no such share, or no rank is so small.
    """
    if not 0.0 < ratio < 1.0:
        raise InputError(f"a rank has a share of the layer's weights in (0, 1), got ratio={ratio}")
    found = fitting(spec, method)

    def weights(rank: Rank) -> int:
        return sum(part.weights for part in found.parts(spec, rank))

    ranks = sorted({found.usable(spec, rank) for rank in _staircase(found.full(spec))})
    fit = bisect_right(ranks, ratio * spec.weights + ROUNDING * spec.weights, key=weights)
    if not fit:
        raise InputError(
            f"no rank of layer {spec.name!r} under {method!r} has {ratio:g} of its {spec.weights} weights, the lowest "
            f"has {weights(ranks[0])}; raise the ratio or leave the layer whole"
        )
    return ranks[fit - 1]


def _staircase(full: Rank) -> Iterator[Rank]:
    """From the lowest ranks to the full ones, all in proportion; each step raises at least one.

    >>> sorted(set(_staircase((2, 4))))
    [(1, 1), (1, 2), (1, 3), (2, 4)]
    """
    for most in full:
        for step in range(1, most + 1):
            yield tuple(max(1, step * each // most) for each in full)
