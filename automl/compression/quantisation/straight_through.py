"""Gradients that pass what has none: Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons",
arXiv 1308.3432."""

from typing import Any, cast

import torch
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, smooth: Tensor, exact: Tensor) -> Tensor:
        return exact.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def straight_through(smooth: Tensor, exact: Tensor) -> Tensor:
    """The exact values, bit for bit, with the gradient of the smooth ones (of the same shape)."""
    return cast(Tensor, _StraightThrough.apply(smooth, exact.detach()))  # type: ignore[no-untyped-call]
