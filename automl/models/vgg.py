"""VGG (Simonyan & Zisserman 2015) for CIFAR: batch norm, one linear layer (Li et al. 2017, "Pruning Filters")."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from automl.models.layers import conv_bn, initialise, pooled

# output channels of each stage's convolutions; pooling follows each stage
VGG11 = ((64,), (128,), (256, 256), (512, 512), (512, 512))
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class Vgg(nn.Module):
    """Stages of 3x3 convolutions, each followed by max pooling (left out where one pixel remains)."""

    def __init__(self, stages: Sequence[Sequence[int]], input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        width, *size = input_shape
        features: OrderedDict[str, nn.Module] = OrderedDict()
        for stage, outputs in enumerate(stages, start=1):
            for number, out in enumerate(outputs, start=1):
                features[f"conv{stage}_{number}"] = conv_bn(width, out)
                width = out
            if min(size) > 1:
                features[f"pool{stage}"] = nn.MaxPool2d(2)
                size = [pooled(pixels) for pixels in size]
        self.features = nn.Sequential(features)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(width, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] -> logits [N, classes]."""
        return self.fc(self.flatten(self.pool(self.features(x))))  # type: ignore[no-any-return]


def vgg11(*, classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """VGG-11 for CIFAR, with batch norm and one linear layer."""
    return Vgg(VGG11, input_shape, classes)


def vgg16(*, classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """VGG-16 for CIFAR, with batch norm and one linear layer."""
    return Vgg(VGG16, input_shape, classes)
