"""Random changes of a training batch, drawn from a given generator."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ShiftAndFlip:
    """Shifts each image by up to `pad` pixels (zero-padded, as a random crop), and mirrors half of them if `flip`.

    With pad=4 and flip=True the usual augmentation of CIFAR (He et al. 2016, section 4.2).
    """

    pad: int
    flip: bool = False

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Images [N, C, H, W] -> the same shape."""
        count, channels, height, width = images.shape
        offsets = torch.randint(0, 2 * self.pad + 1, (2, count), generator=generator)
        rows = offsets[0, :, None] + torch.arange(height)
        columns = offsets[1, :, None] + torch.arange(width)
        if self.flip:
            mirrored = torch.rand(count, generator=generator) < 0.5
            columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        padded = F.pad(images, (self.pad,) * 4)
        index = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).view(count, 1, -1)
        pixels = padded.flatten(2).gather(2, index.expand(-1, channels, -1))
        return pixels.view(count, channels, height, width)
