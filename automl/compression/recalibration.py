"""Batch-norm recalibration: the running statistics of the network as pruned, not as it was."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

BATCH = 256
RECALIBRATED = 512
"""Images that the batch norms of a sub-network find their statistics on, where a config does not say."""


def recalibrate_batch_norm(module: nn.Module, images: Tensor) -> None:
    """Replace the running mean and variance of every batch norm by those of the images, in place.

    They are the plain average over batches of equal size of each batch's mean and unbiased variance, so the order
    of the images does not fade the first ones out. Nothing else changes, and the mode of every module is kept.

    Args:
        module: the pruned network.
        images: [N, C, H, W], at least two.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [(norm.training, norm.momentum) for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's spelling of the cumulative average
            norm.train()
        with torch.no_grad():
            for batch in images.tensor_split(-(-len(images) // BATCH)):
                module(batch)
    finally:
        for norm, (training, momentum) in zip(norms, before, strict=True):
            norm.training, norm.momentum = training, momentum
