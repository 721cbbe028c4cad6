"""AlexNet (Krizhevsky et al. 2012) with the small kernels and strides that CIFAR's pictures need."""

from collections import OrderedDict
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from automl.models.layers import initialise, pooled

# (output channels, stride, whether max pooling follows)
CONVOLUTIONS = ((64, 2, True), (192, 1, True), (384, 1, False), (256, 1, False), (256, 1, True))


class AlexNet(nn.Module):
    """Five 3x3 convolutions, three poolings, three linear layers with dropout."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int, hidden: int) -> None:
        super().__init__()
        width, *size = input_shape
        features: OrderedDict[str, nn.Module] = OrderedDict()
        for number, (outputs, stride, pool) in enumerate(CONVOLUTIONS, start=1):
            features[f"conv{number}"] = nn.Conv2d(width, outputs, 3, stride, padding=1)
            features[f"relu{number}"] = nn.ReLU()
            width = outputs
            size = [-(-pixels // stride) for pixels in size]
            if pool and min(size) > 1:
                features[f"pool{number}"] = nn.MaxPool2d(2)
                size = [pooled(pixels) for pixels in size]
        self.features = nn.Sequential(features)
        self.flatten = nn.Flatten()
        self.dropout1 = nn.Dropout()
        self.fc1 = nn.Linear(width * size[0] * size[1], hidden)
        self.relu1 = nn.ReLU()
        self.dropout2 = nn.Dropout()
        self.fc2 = nn.Linear(hidden, hidden)
        self.relu2 = nn.ReLU()
        self.fc3 = nn.Linear(hidden, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] -> logits [N, classes]."""
        x = self.flatten(self.features(x))
        x = self.relu1(self.fc1(self.dropout1(x)))
        x = self.relu2(self.fc2(self.dropout2(x)))
        return self.fc3(x)  # type: ignore[no-any-return]


def alexnet_cifar(
    *, classes: int, input_shape: tuple[int, int, int], hidden: Annotated[int, Field(ge=1)] = 4096
) -> nn.Module:
    """AlexNet for small pictures; `hidden` is the width of its two hidden linear layers. Train it with lr 0.01."""
    return AlexNet(input_shape, classes, hidden)
