"""SqueezeNet 1.1 (Iandola et al. 2016)."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from automl.models.layers import initialise
from automl.models.mobilenet import Stem, stem_for

# (squeeze, expand) channels of the fire modules; pooling stands before those in POOL_BEFORE
FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
POOL_BEFORE = (0, 2, 4)


class Fire(nn.Module):
    """Squeeze by 1x1, then 1x1 and 3x3 side by side, concatenated."""

    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.squeeze_relu = nn.ReLU()
        self.expand1 = nn.Conv2d(squeeze, expand, 1)
        self.expand1_relu = nn.ReLU()
        self.expand3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.expand3_relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, 2 * expand, H, W]."""
        x = self.squeeze_relu(self.squeeze(x))
        return torch.cat([self.expand1_relu(self.expand1(x)), self.expand3_relu(self.expand3(x))], dim=1)


class SqueezeNet(nn.Module):
    """A stem, eight fire modules, a 1x1 convolution as classifier. It has no batch norm."""

    def __init__(self, channels: int, classes: int, stem: Stem) -> None:
        super().__init__()
        small = stem == "cifar"
        features: OrderedDict[str, nn.Module] = OrderedDict()
        features["stem"] = nn.Conv2d(channels, 64, 3, 1, padding=1) if small else nn.Conv2d(channels, 64, 3, 2)
        features["stem_relu"] = nn.ReLU()
        width = 64
        for number, (squeeze, expand) in enumerate(FIRES):
            if number in POOL_BEFORE:
                features[f"pool{number + 1}"] = nn.MaxPool2d(3, 2, ceil_mode=True)
            features[f"fire{number + 1}"] = Fire(width, squeeze, expand)
            width = 2 * expand
        self.features = nn.Sequential(features)
        self.dropout = nn.Dropout()
        self.classifier = nn.Conv2d(width, classes, 1)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        initialise(self)
        nn.init.normal_(self.classifier.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] -> logits [N, classes]."""
        x = self.relu(self.classifier(self.dropout(self.features(x))))
        return self.flatten(self.pool(x))  # type: ignore[no-any-return]


def squeezenet(*, classes: int, input_shape: tuple[int, int, int], stem: Stem | None = None) -> nn.Module:
    """SqueezeNet 1.1; no batch norm, so train it with lr 0.01 or Adam. Stem as for mobilenet_v1."""
    return SqueezeNet(input_shape[0], classes, stem_for(stem, input_shape))
