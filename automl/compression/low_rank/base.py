"""What a low-rank method is, and the truncated SVD that several of them rest on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from search_spaces.errors import InputError
from search_spaces.factorisations import Rank


@dataclass(frozen=True, slots=True)
class LowRankMethod:
    """The tensor half of a factorisation.

    Attributes:
        weights: the weights of the parts in order, of a float64 weight [out, in, *kernel] and ranks in their range;
            each is [out, in, *kernel] of its part in `search_spaces.factorisations`.
        unfoldings: for each rank the matrix whose singular values it cuts off, of the same weight.
    """

    weights: Callable[[Tensor, Rank], tuple[Tensor, ...]]
    unfoldings: Callable[[Tensor], tuple[Tensor, ...]]


def factor_matrix(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The product of two matrices that is closest to one, by its truncated singular value decomposition.

    Eckart & Young, "The approximation of one matrix by another of lower rank", Psychometrika 1936: no product of that
    rank has a smaller Frobenius error, whose square is the sum of the squared singular values that are cut off. Each
    factor gets their square roots, so that both have the same scale, which few bits represent best.

    Args:
        matrix: [m, n].
        rank: 1 to min(m, n).

    Returns:
        [m, rank] and [rank, n], computed in float64, of the matrix's type.

    Raises:
        InputError: no matrix, numbers that are not finite, or a rank out of range.
    """
    if matrix.ndim != 2:
        raise InputError(f"a matrix to factor has two dimensions, got {list(matrix.shape)}; reshape it")
    check_finite(matrix)
    if type(rank) is not int or not 1 <= rank <= min(matrix.shape):
        raise InputError(f"the rank of a {list(matrix.shape)} matrix is from 1 to {min(matrix.shape)}, got {rank!r}")
    left, values, right = torch.linalg.svd(matrix.detach().double(), full_matrices=False)
    root = values[:rank].sqrt()
    return (left[:, :rank] * root).to(matrix.dtype), (root[:, None] * right[:rank]).to(matrix.dtype)


def check_finite(weight: Tensor) -> None:
    """InputError where weights are not finite: no decomposition of them is defined."""
    if not torch.isfinite(weight).all():
        raise InputError(
            f"weights to factor are finite, those of shape {list(weight.shape)} hold NaN or infinity; repair them first"
        )


def as_ranks(rank: int | Rank) -> Rank:
    """Ranks of a method that has one may be given as a number."""
    return rank if isinstance(rank, tuple) else (rank,)
