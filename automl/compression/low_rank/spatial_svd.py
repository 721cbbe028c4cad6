"""Spatial SVD: a two-dimensional convolution as one along the columns, then one along the rows.

Jaderberg, Vedaldi & Zisserman, "Speeding up Convolutional Neural Networks with Low Rank Expansions", BMVC 2014, their
second scheme: W[o, i, y, x] = sum over r of H[o, r, x] V[r, i, y]. Tai et al., "Convolutional neural networks with
low-rank regularization", ICLR 2016, show that the SVD of the matrix [in * rows, out * columns] gives its optimum.
"""

from torch import Tensor

from automl.compression.low_rank.base import LowRankMethod, factor_matrix
from search_spaces.factorisations import Rank


def _matrix(weight: Tensor) -> Tensor:
    """[in * rows, out * columns]."""
    outputs, inputs, rows, columns = weight.shape
    return weight.permute(1, 2, 0, 3).reshape(inputs * rows, outputs * columns)


def _weights(weight: Tensor, rank: Rank) -> tuple[Tensor, ...]:
    outputs, inputs, rows, columns = weight.shape
    left, right = factor_matrix(_matrix(weight), rank[0])
    vertical = left.T.reshape(rank[0], inputs, rows, 1)
    horizontal = right.reshape(rank[0], outputs, 1, columns).transpose(0, 1)
    return vertical, horizontal


SPATIAL_SVD = LowRankMethod(weights=_weights, unfoldings=lambda weight: (_matrix(weight),))
