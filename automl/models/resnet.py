"""Residual networks for CIFAR (He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2)."""

from collections import OrderedDict
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from automl.models.layers import initialise

Shortcut = Literal["A", "B"]
STAGES = (16, 32, 64)


class PadShortcut(nn.Module):
    """Option A: every other pixel, and zeros for the new channels, half on either side. No parameters."""

    def __init__(self, stride: int, new_channels: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = new_channels // 2
        self.after = new_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C + new, ceil(H / stride), ceil(W / stride)]."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, and the shortcut around them; without it (`shortcut=None`) a block of a plain network."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module | None = None
        if shortcut is not None:
            self.shortcut = _shortcut(inputs, outputs, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, ceil(H / stride), ceil(W / stride)]."""
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        if self.shortcut is not None:
            out = out + self.shortcut(x)
        return self.relu2(out)  # type: ignore[no-any-return]


def _shortcut(inputs: int, outputs: int, stride: int, kind: Shortcut) -> nn.Module:
    if inputs == outputs and stride == 1:
        return nn.Identity()
    if kind == "A":
        return PadShortcut(stride, outputs - inputs)
    projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
    return nn.Sequential(OrderedDict(conv=projection, bn=nn.BatchNorm2d(outputs)))


class CifarResNet(nn.Module):
    """6n + 2 layers: a stem, three stages of n blocks with 16, 32 and 64 channels, one linear layer."""

    def __init__(self, depth: int, channels: int, classes: int, shortcut: Shortcut | None) -> None:
        super().__init__()
        width = STAGES[0]
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        blocks: list[nn.Module] = []
        for stage, outputs in enumerate(STAGES):
            for number in range((depth - 2) // 6):
                blocks.append(BasicBlock(width, outputs, 2 if stage and not number else 1, shortcut))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(width, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] -> logits [N, classes]."""
        x = self.blocks(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.flatten(self.pool(x)))  # type: ignore[no-any-return]


def resnet20(*, classes: int, input_shape: tuple[int, int, int], shortcut: Shortcut = "A") -> nn.Module:
    """ResNet-20 for CIFAR; shortcut "A" (padding, the paper's) or "B" (projection)."""
    return CifarResNet(20, input_shape[0], classes, shortcut)


def resnet32(*, classes: int, input_shape: tuple[int, int, int], shortcut: Shortcut = "A") -> nn.Module:
    """ResNet-32 for CIFAR; shortcut "A" or "B"."""
    return CifarResNet(32, input_shape[0], classes, shortcut)


def resnet44(*, classes: int, input_shape: tuple[int, int, int], shortcut: Shortcut = "A") -> nn.Module:
    """ResNet-44 for CIFAR; shortcut "A" or "B"."""
    return CifarResNet(44, input_shape[0], classes, shortcut)


def resnet56(*, classes: int, input_shape: tuple[int, int, int], shortcut: Shortcut = "A") -> nn.Module:
    """ResNet-56 for CIFAR; shortcut "A" or "B"."""
    return CifarResNet(56, input_shape[0], classes, shortcut)


def resnet110(*, classes: int, input_shape: tuple[int, int, int], shortcut: Shortcut = "A") -> nn.Module:
    """ResNet-110 for CIFAR; shortcut "A" or "B"."""
    return CifarResNet(110, input_shape[0], classes, shortcut)


def plain20(*, classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """ResNet-20 without its shortcuts: the paper's plain network, which AMC prunes too."""
    return CifarResNet(20, input_shape[0], classes, shortcut=None)
