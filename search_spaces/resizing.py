"""Images at another resolution; the one place where they are resized."""

import torch.nn.functional as F
from torch import Tensor

from search_spaces.resolution import Resolution


def resize(images: Tensor, size: Resolution | None) -> Tensor:
    """Images [..., C, H, W] at a size, [..., C, *size]: bilinear, antialiased; as they are where that is None."""
    if size is None or tuple(images.shape[-2:]) == tuple(size):
        return images
    batch = images.reshape(-1, *images.shape[-3:])
    small = F.interpolate(batch, size=size, mode="bilinear", antialias=True, align_corners=False)
    return small.reshape(*images.shape[:-2], *size)
