"""The largest networks of Once-for-All (Cai et al., ICLR 2020), whose sub-networks a search space holds.

They are written at full size: `space.kernel`, `space.keep`, `space.depth` and `space.resolution` say what is smaller in
a sub-network. Of each stage the first block changes the shape and stays; the others are residual, and can be left out.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from automl.models.layers import conv_bn, initialise, make_divisible
from automl.models.mobilenet import Stem, Width, stem_for
from automl.models.resnet import CifarResNet

Depth = Annotated[int, Field(ge=1, le=8)]
Kernel = Literal[3, 5, 7]
Expand = Annotated[float, Field(ge=1, le=8)]

STEM = 16
# (output channels, stride, hard-swish in place of ReLU, squeeze-and-excitation) of the stages
V3_STAGES = (
    (24, 2, False, False),
    (40, 2, False, True),
    (80, 2, True, False),
    (112, 1, True, True),
    (160, 2, True, True),
)
V3_EXPANDED, V3_MIXED = 960, 1280
SQUEEZE = 4

SMALL_STAGES = ((16, 2), (24, 1), (40, 2))  # (output channels, stride)
SMALL_HEAD = 128

# (output channels, stride, blocks more than `depth`)
RESNET_STAGES = ((256, 1, 2), (512, 2, 2), (1024, 2, 4), (2048, 2, 2))
RESNET_STEM = 64


class SqueezeExcitation(nn.Module):
    """Channels weighted by what all pixels show (Hu et al. 2018), with a hard sigmoid as in MobileNetV3.

    Its squeezed channels are a layer's of their own, a quarter of the largest network's. OFA's follow the expansion; in
    a search space they stay whole where it protects them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = make_divisible(channels // SQUEEZE)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.relu = nn.ReLU()
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        return x * self.gate(self.expand(self.relu(self.reduce(self.pool(x)))))  # type: ignore[no-any-return]


class MobileBlock(nn.Module):
    """MobileNetV3's block: expand by 1x1, filter depthwise, weight channels, project; a shortcut where shapes allow.

    Args:
        inputs, outputs: channels.
        stride, kernel: of the depthwise convolution.
        expand: its channels for each input channel; no expansion where it is 1.
        act: after the first two convolutions.
        squeeze: whether there is squeeze-and-excitation.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        stride: int,
        kernel: int,
        expand: float,
        act: type[nn.Module] = nn.ReLU,
        squeeze: bool = False,
    ) -> None:
        super().__init__()
        hidden = round(inputs * expand)
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if expand != 1:
            parts["expand"] = conv_bn(inputs, hidden, kernel=1, act=act)
        parts["depthwise"] = conv_bn(hidden, hidden, kernel=kernel, stride=stride, groups=hidden, act=act)
        if squeeze:
            parts["squeeze"] = SqueezeExcitation(hidden)
        parts["project"] = conv_bn(hidden, outputs, kernel=1, act=None)
        self.body = nn.Sequential(parts)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, ceil(H / stride), ceil(W / stride)]."""
        return x + self.body(x) if self.residual else self.body(x)  # type: ignore[no-any-return]


class ImageClassifier(nn.Module):
    """A stem, stages of blocks, a head that ends in one pixel, one linear layer.

    Args:
        stem: images to the first stage's input.
        stages: the blocks of each.
        head: what follows, to [N, features, 1, 1].
        features: that the linear layer reads.
        classes: that it tells apart.
        dropout: share of the features that training leaves out.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[Sequence[nn.Module]],
        head: nn.Module,
        features: int,
        classes: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(*(nn.Sequential(*blocks) for blocks in stages))
        self.head = head
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(features, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] -> logits [N, classes]."""
        features = self.head(self.stages(self.stem(x)))
        return self.fc(self.dropout(self.flatten(features)))  # type: ignore[no-any-return]


def ofa_mobilenet_v3(
    *,
    classes: int,
    input_shape: tuple[int, int, int],
    width: Width = 1.0,
    stem: Stem | None = None,
    depth: Depth = 4,
    kernel: Kernel = 7,
    expand: Expand = 6,
) -> nn.Module:
    """OFA's MobileNetV3 at its largest.

    OFA's space is `{kernel: [3, 5], keep: [0.5, 0.6667], depth: 1, protect: ["stem*", "*.project*", "*.squeeze*",
    "head*"]}`: expansions of 3, 4 and 6, kernels of 3, 5 and 7, two to four blocks a stage.

    Args:
        classes: number of classes.
        input_shape: (C, H, W).
        width: multiplies the channels of every layer, rounded to multiples of 8; OFA trained 1.0 and 1.2.
        stem: "imagenet" halves the picture five times, "cifar" three times; None takes "cifar" below 64 pixels.
        depth: blocks of each of the five stages.
        kernel: of the stages' depthwise convolutions.
        expand: their channels for each channel that a block reads.
    """
    stem = stem_for(stem, input_shape)

    def scaled(channels: int) -> int:
        return make_divisible(channels * width)

    current = scaled(STEM)
    first = nn.Sequential(
        OrderedDict(
            conv=conv_bn(input_shape[0], current, stride=1 if stem == "cifar" else 2, act=nn.Hardswish),
            block=MobileBlock(current, current, stride=1, kernel=3, expand=1),
        )
    )
    stages = []
    for number, (base, stride, swish, squeeze) in enumerate(V3_STAGES):
        blocks = []
        for place in range(depth):
            blocks.append(
                MobileBlock(
                    current,
                    scaled(base),
                    stride=stride if place == 0 and not (stem == "cifar" and number == 0) else 1,
                    kernel=kernel,
                    expand=expand,
                    act=nn.Hardswish if swish else nn.ReLU,
                    squeeze=squeeze,
                )
            )
            current = scaled(base)
        stages.append(blocks)
    expanded, mixed = scaled(V3_EXPANDED), scaled(V3_MIXED)
    head = nn.Sequential(
        OrderedDict(
            expand=conv_bn(current, expanded, kernel=1, act=nn.Hardswish),
            pool=nn.AdaptiveAvgPool2d(1),
            mix=nn.Conv2d(expanded, mixed, 1, bias=False),
            act=nn.Hardswish(),
        )
    )
    return ImageClassifier(first, stages, head, mixed, classes, dropout=0.1)


def ofa_small(
    *,
    classes: int,
    input_shape: tuple[int, int, int],
    width: Width = 1.0,
    depth: Depth = 4,
    kernel: Kernel = 5,
    expand: Expand = 4,
) -> nn.Module:
    """A small supernet of inverted residual blocks, for images of 16 or 32 pixels, that trains on CPUs.

    ReLU alone and no squeeze-and-excitation, so that every engine and accelerator takes it, in 8 bits too. Kernels of
    5, since on CPUs those of 7 take a third longer to train.

    Args:
        classes: number of classes.
        input_shape: (C, H, W); the picture is halved twice.
        width: multiplies the channels of every layer, rounded to multiples of 8.
        depth: blocks of each of the three stages, of 16, 24 and 40 channels.
        kernel: of their depthwise convolutions.
        expand: the channels of those for each channel that a block reads.
    """
    current = make_divisible(STEM * width)
    stem = conv_bn(input_shape[0], current)
    stages = []
    for base, stride in SMALL_STAGES:
        blocks = []
        for place in range(depth):
            outputs = make_divisible(base * width)
            step = 1 if place else stride
            blocks.append(MobileBlock(current, outputs, stride=step, kernel=kernel, expand=expand))
            current = outputs
        stages.append(blocks)
    features = make_divisible(SMALL_HEAD * width)
    head = nn.Sequential(OrderedDict(expand=conv_bn(current, features, kernel=1), pool=nn.AdaptiveAvgPool2d(1)))
    return ImageClassifier(stem, stages, head, features, classes)


class Residual(nn.Module):
    """What a module gives, added to what it reads."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that the module keeps."""
        return x + self.body(x)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut; where the picture is halved, the shortcut averages first.

    Args:
        inputs, outputs: channels.
        stride: of the 3x3 convolution.
        expand: channels of the 3x3 convolution for each output channel.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expand: float) -> None:
        super().__init__()
        hidden = make_divisible(round(outputs * expand))
        self.conv1 = conv_bn(inputs, hidden, kernel=1)
        self.conv2 = conv_bn(hidden, hidden, stride=stride)
        self.conv3 = conv_bn(hidden, outputs, kernel=1, act=None)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = conv_bn(inputs, outputs, kernel=1, act=None)
            pool = nn.AvgPool2d(stride, ceil_mode=True)
            self.shortcut = nn.Sequential(pool, projection) if stride != 1 else projection
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, ceil(H / stride), ceil(W / stride)]."""
        return self.act(self.conv3(self.conv2(self.conv1(x))) + self.shortcut(x))  # type: ignore[no-any-return]


def ofa_resnet50(
    *,
    classes: int,
    input_shape: tuple[int, int, int],
    width: Width = 1.0,
    depth: Annotated[int, Field(ge=0, le=4)] = 2,
    expand: Annotated[float, Field(gt=0, le=1)] = 0.35,
) -> nn.Module:
    """OFA's ResNet-50 at its largest.

    A space like OFA's is `{keep: [0.6, 0.8], depth: 1}`. OFA's own has shares of 0.57 and 0.71 of the 3x3 convolutions
    (expansions of 0.2 and 0.25) and of 0.65 and 0.8 of the stages, for which one list stands here, and at least four
    blocks of the third stage.

    Args:
        classes: number of classes.
        input_shape: (C, H, W); the picture is halved five times.
        width: multiplies the channels of every layer, rounded to multiples of 8.
        depth: blocks of each stage beyond two, two, four and two.
        expand: channels of the 3x3 convolutions for each output channel of a block.
    """
    current = make_divisible(RESNET_STEM * width)
    half = make_divisible(current // 2)
    stem = nn.Sequential(
        OrderedDict(
            conv1=conv_bn(input_shape[0], half, stride=2),
            conv2=Residual(conv_bn(half, half)),
            conv3=conv_bn(half, current),
            pool=nn.MaxPool2d(3, 2, padding=1),
        )
    )
    stages = []
    for base, stride, more in RESNET_STAGES:
        outputs = make_divisible(base * width)
        blocks = []
        for place in range(depth + more):
            blocks.append(Bottleneck(current, outputs, 1 if place else stride, expand))
            current = outputs
        stages.append(blocks)
    return ImageClassifier(stem, stages, nn.AdaptiveAvgPool2d(1), current, classes)


def ofa_resnet_small(*, classes: int, input_shape: tuple[int, int, int], depth: Depth = 3) -> nn.Module:
    """A small residual supernet, for images of 16 or 32 pixels: three stages of `depth` blocks (He et al. 2016).

    Of the first stage, whose channels are the stem's, every block can be left out.
    """
    return CifarResNet(6 * depth + 2, input_shape[0], classes, shortcut="B")
