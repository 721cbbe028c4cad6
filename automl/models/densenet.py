"""DenseNet for CIFAR without bottlenecks (Huang et al. 2017; k = 12, depth 40: 1.0 million parameters)."""

from collections import OrderedDict
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from automl.models.layers import initialise


def _bn_relu_conv(inputs: int, outputs: int, kernel: int) -> OrderedDict[str, nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return OrderedDict(bn=nn.BatchNorm2d(inputs), relu=nn.ReLU(), conv=conv)


class DenseLayer(nn.Module):
    """Appends `growth` channels to what it is given."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_bn_relu_conv(inputs, growth, kernel=3))

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, inputs + growth, H, W]."""
        return torch.cat([x, self.body(x)], dim=1)


class DenseNet(nn.Module):
    """A stem, three dense blocks with transitions (1x1 convolution, average pooling) between, one linear layer."""

    def __init__(self, depth: int, growth: int, channels: int, classes: int) -> None:
        super().__init__()
        width = 16
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["stem"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        for block in range(1, 4):
            for number in range(1, (depth - 4) // 3 + 1):
                layers[f"dense{block}_{number}"] = DenseLayer(width, growth)
                width += growth
            if block < 3:
                transition = _bn_relu_conv(width, width, kernel=1)
                layers[f"transition{block}"] = nn.Sequential(transition | OrderedDict(pool=nn.AvgPool2d(2)))
        layers["bn"] = nn.BatchNorm2d(width)
        layers["relu"] = nn.ReLU()
        self.features = nn.Sequential(layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(width, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] -> logits [N, classes]."""
        return self.fc(self.flatten(self.pool(self.features(x))))  # type: ignore[no-any-return]


def densenet40(
    *, classes: int, input_shape: tuple[int, int, int], growth: Annotated[int, Field(ge=1)] = 12
) -> nn.Module:
    """DenseNet-40 for CIFAR, `growth` channels a layer (the paper's k)."""
    return DenseNet(40, growth, input_shape[0], classes)
