"""SVD of a linear layer, or of a convolution as the matrix [out, in * kernel].

Linear layers as Denton et al., "Exploiting Linear Structure Within Convolutional Networks for Efficient Evaluation",
NeurIPS 2014, take them apart; convolutions as Zhang et al., "Accelerating Very Deep Convolutional Networks for
Classification and Detection", TPAMI 2016, do, but by the weights' error: the layer's kernels to the rank, then 1 x 1.

The matrix W_ih = U V with which an LSTM or GRU reads its input, too: V is a linear layer without bias before the same
layer with the matrix U, as Prabhavalkar et al., "On the compression of recurrent neural networks with an application to
LVCSR acoustic modeling for embedded speech recognition", ICASSP 2016, factor it. W_hh they factor as well; it has no
such form in torch, whose layers hold one matrix inside the recurrence (an LSTM with a projection is another network).
"""

from torch import Tensor

from automl.compression.low_rank.base import LowRankMethod, factor_matrix
from search_spaces.factorisations import Rank


def _matrix(weight: Tensor) -> Tensor:
    """[out, in * kernel]."""
    return weight.flatten(1)


def _weights(weight: Tensor, rank: Rank) -> tuple[Tensor, ...]:
    left, right = factor_matrix(_matrix(weight), rank[0])
    ones = (1,) * (weight.ndim - 2)
    return right.reshape(rank[0], *weight.shape[1:]), left.reshape(*left.shape, *ones)


SVD = LowRankMethod(weights=_weights, unfoldings=lambda weight: (_matrix(weight),))
