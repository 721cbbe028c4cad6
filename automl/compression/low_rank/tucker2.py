"""Tucker-2: a convolution between fewer input and output channels, with a 1 x 1 convolution on either side.

Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications", ICLR 2016:
W[o, i, ...] = sum over p, q of O[o, q] C[q, p, ...] I[i, p]. TensorLy (Kossaifi et al., JMLR 2019) finds it by
higher-order orthogonal iteration from the truncated higher-order SVD, whose error it only ever lowers.
"""

from typing import Any

import torch
from torch import Tensor

from automl.compression.low_rank.base import LowRankMethod
from search_spaces.factorisations import Rank

TOLERANCE = 1e-4
"""Change of the relative error at which the iteration ends, after 3 to 9 rounds. Going on to 1e-6 takes up to 84 and
gains less than 0.001 (random weights, and those of a small trained network)."""


def _weights(weight: Tensor, rank: Rank) -> tuple[Tensor, ...]:
    inputs, outputs = rank
    core, (last, first) = _partial_tucker(weight, (outputs, inputs))
    ones = (1,) * (weight.ndim - 2)
    return first.T.reshape(*first.T.shape, *ones), core, last.reshape(*last.shape, *ones)


def _partial_tucker(weight: Tensor, rank: tuple[int, int]) -> tuple[Tensor, list[Tensor]]:
    """Core [q, p, *kernel], factors [out, q] and [in, p] with orthonormal columns."""
    if not weight.any():  # TensorLy divides by the norm
        factors = [torch.eye(size, each).to(weight) for size, each in zip(weight.shape[:2], rank, strict=True)]
        return weight.new_zeros(*rank, *weight.shape[2:]), factors

    import tensorly  # takes a second, which only those who decompose should wait
    from tensorly.decomposition import partial_tucker

    with tensorly.backend_context("numpy", local_threadsafe=True):
        found: Any = partial_tucker(weight.cpu().numpy(), list(rank), modes=[0, 1], init="svd", tol=TOLERANCE)
    (core, arrays), _ = found
    return _tensor(core, weight), [_tensor(array, weight) for array in arrays]


def _tensor(array: Any, like: Tensor) -> Tensor:
    return torch.as_tensor(array, dtype=like.dtype, device=like.device)


def _unfoldings(weight: Tensor) -> tuple[Tensor, ...]:
    """Along the input, and along the output channels."""
    return weight.transpose(0, 1).flatten(1), weight.flatten(1)


TUCKER2 = LowRankMethod(weights=_weights, unfoldings=_unfoldings)
