"""MobileNetV1 (Howard et al. 2017) and MobileNetV2 (Sandler et al. 2018)."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from automl.models.layers import conv_bn, initialise, make_divisible
from search_spaces.errors import InputError

Stem = Literal["cifar", "imagenet"]
Width = Annotated[float, Field(gt=0, le=4)]

# (output channels, stride) of the 13 depthwise-separable blocks
V1_STEM = 32
V1_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))

# (expansion, output channels, blocks, stride of the first)
V2_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def stem_for(stem: Stem | None, input_shape: tuple[int, int, int]) -> Stem:
    """The stem asked for; by default CIFAR's below 64 pixels."""
    return stem or ("cifar" if min(input_shape[1:]) < 64 else "imagenet")


class MobileNetV1(nn.Module):
    """A stem and 13 depthwise-separable blocks, `channels` = [input, stem, block 1, ..., block 13]."""

    def __init__(self, channels: Sequence[int], classes: int, stem: Stem) -> None:
        super().__init__()
        inputs, width, *outputs = channels
        self.stem = conv_bn(inputs, width, stride=1 if stem == "cifar" else 2)
        blocks = []
        for out, (_, stride) in zip(outputs, V1_BLOCKS, strict=True):
            depthwise = conv_bn(width, width, stride=stride, groups=width)
            pointwise = conv_bn(width, out, kernel=1)
            blocks.append(nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=pointwise)))
            width = out
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(width, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] -> logits [N, classes]."""
        return self.fc(self.flatten(self.pool(self.blocks(self.stem(x)))))  # type: ignore[no-any-return]


def mobilenet_v1(
    *,
    classes: int,
    input_shape: tuple[int, int, int],
    width: Width = 1.0,
    stem: Stem | None = None,
    channels: list[Annotated[int, Field(ge=1)]] | None = None,
) -> nn.Module:
    """MobileNetV1.

    Args:
        classes: number of classes.
        input_shape: (C, H, W).
        width: multiplies the channels of every layer (the paper's alpha).
        stem: "imagenet" halves the picture at once, "cifar" does not; None takes "cifar" below 64 pixels.
        channels: of every layer instead, as AMC publishes its pruned networks: [input, stem, block 1, ..., block 13].
    """
    if channels is None:
        channels = [input_shape[0], *(int(base * width) for base in (V1_STEM, *(out for out, _ in V1_BLOCKS)))]
    if len(channels) != len(V1_BLOCKS) + 2 or channels[0] != input_shape[0]:
        raise InputError(
            f"'channels' of mobilenet_v1 lists the input ({input_shape[0]}), the stem and {len(V1_BLOCKS)} blocks, "
            f"got {channels}"
        )
    return MobileNetV1(channels, classes, stem_for(stem, input_shape))


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter depthwise, project by 1x1 without activation; a shortcut where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if expansion != 1:
            parts["expand"] = conv_bn(inputs, hidden, kernel=1, act=nn.ReLU6)
        parts["depthwise"] = conv_bn(hidden, hidden, stride=stride, groups=hidden, act=nn.ReLU6)
        parts["project"] = conv_bn(hidden, outputs, kernel=1, act=None)
        self.body = nn.Sequential(parts)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, ceil(H / stride), ceil(W / stride)]."""
        return x + self.body(x) if self.residual else self.body(x)  # type: ignore[no-any-return]


class MobileNetV2(nn.Module):
    """A stem, 17 inverted residual blocks, a 1x1 convolution and one linear layer; torchvision's layer sizes."""

    def __init__(self, channels: int, classes: int, width: float, stem: Stem) -> None:
        super().__init__()
        current = make_divisible(32 * width)
        self.stem = conv_bn(channels, current, stride=1 if stem == "cifar" else 2, act=nn.ReLU6)
        blocks = []
        for stage, (expansion, base, count, first_stride) in enumerate(V2_STAGES):
            out = make_divisible(base * width)
            for number in range(count):
                stride = first_stride if number == 0 and not (stem == "cifar" and stage == 1) else 1
                blocks.append(InvertedResidual(current, out, stride, expansion))
                current = out
        self.blocks = nn.Sequential(*blocks)
        last = make_divisible(1280 * max(1.0, width))
        self.head = conv_bn(current, last, kernel=1, act=nn.ReLU6)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(last, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] -> logits [N, classes]."""
        features = self.head(self.blocks(self.stem(x)))
        return self.fc(self.dropout(self.flatten(self.pool(features))))  # type: ignore[no-any-return]


def mobilenet_v2(
    *, classes: int, input_shape: tuple[int, int, int], width: Width = 1.0, stem: Stem | None = None
) -> nn.Module:
    """MobileNetV2; width multiplier, and the stem as for mobilenet_v1 ("cifar" halves the picture twice less)."""
    return MobileNetV2(input_shape[0], classes, width, stem_for(stem, input_shape))
