"""ShuffleNetV2 (Ma et al. 2018)."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from automl.models.layers import conv_bn, initialise
from automl.models.mobilenet import Stem, stem_for
from search_spaces.errors import InputError

REPEATS = (4, 8, 4)
CHANNELS: dict[float, tuple[int, ...]] = {
    0.5: (24, 48, 96, 192, 1024),
    1.0: (24, 116, 232, 464, 1024),
    1.5: (24, 176, 352, 704, 1024),
    2.0: (24, 244, 488, 976, 2048),
}


def channel_shuffle(x: Tensor, groups: int = 2) -> Tensor:
    """[N, C, H, W] with channels dealt out: entry (g, i) of [groups, C / groups] moves to (i, g)."""
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width)
    return x.transpose(1, 2).reshape(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    """Half of the channels passes by, the other is filtered; with stride 2 both halves are. Then they are shuffled."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.split = inputs // 2 if stride == 1 else 0
        entering = inputs - self.split
        self.bypass: nn.Module = nn.Identity()
        if stride > 1:
            self.bypass = nn.Sequential(
                OrderedDict(
                    depthwise=conv_bn(inputs, inputs, stride=stride, groups=inputs, act=None),
                    pointwise=conv_bn(inputs, half, kernel=1),
                )
            )
        self.branch = nn.Sequential(
            OrderedDict(
                expand=conv_bn(entering, half, kernel=1),
                depthwise=conv_bn(half, half, stride=stride, groups=half, act=None),
                project=conv_bn(half, half, kernel=1),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, ceil(H / stride), ceil(W / stride)]."""
        if self.split:
            past, through = x.chunk(2, dim=1)
        else:
            past, through = self.bypass(x), x
        return channel_shuffle(torch.cat([past, self.branch(through)], dim=1))


class ShuffleNetV2(nn.Module):
    """A stem, three stages of shuffle units, a 1x1 convolution and one linear layer; torchvision's layer sizes."""

    def __init__(self, channels: int, classes: int, width: float, stem: Stem) -> None:
        super().__init__()
        first, *stages, last = CHANNELS[width]
        self.stem = conv_bn(channels, first, stride=1 if stem == "cifar" else 2)
        self.stem_pool = nn.Identity() if stem == "cifar" else nn.MaxPool2d(3, 2, padding=1)
        units = []
        current = first
        for outputs, repeats in zip(stages, REPEATS, strict=True):
            for number in range(repeats):
                units.append(ShuffleUnit(current, outputs, stride=1 if number else 2))
                current = outputs
        self.units = nn.Sequential(*units)
        self.head = conv_bn(current, last, kernel=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(last, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] -> logits [N, classes]."""
        x = self.head(self.units(self.stem_pool(self.stem(x))))
        return self.fc(self.flatten(self.pool(x)))  # type: ignore[no-any-return]


def shufflenet_v2(
    *, classes: int, input_shape: tuple[int, int, int], width: float = 1.0, stem: Stem | None = None
) -> nn.Module:
    """ShuffleNetV2; width 0.5, 1.0, 1.5 or 2.0, stem as for mobilenet_v1."""
    if width not in CHANNELS:
        raise InputError(f"'width' of shufflenet_v2 is one of {sorted(CHANNELS)}, got {width}")
    return ShuffleNetV2(input_shape[0], classes, width, stem_for(stem, input_shape))
