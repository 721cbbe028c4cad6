"""The networks that pruning papers began with: LeNet-300-100 and LeNet-5 (LeCun et al. 1998, in Caffe's sizes)."""

from math import prod

from torch import Tensor, nn

from search_spaces.errors import InputError


class LeNet300(nn.Module):
    """Three linear layers: 300, 100, classes."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(features, 300)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(300, 100)
        self.relu2 = nn.ReLU()
        self.fc3 = nn.Linear(100, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] -> logits [N, classes]."""
        x = self.relu1(self.fc1(self.flatten(x)))
        return self.fc3(self.relu2(self.fc2(x)))  # type: ignore[no-any-return]


def lenet300_100(*, classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """LeNet-300-100: two hidden linear layers (Han et al. 2015 prune it)."""
    return LeNet300(prod(input_shape), classes)


class LeNet5(nn.Module):
    """Two unpadded 5x5 convolutions (20 and 50 channels) with max pooling, two linear layers (500, classes)."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        height, width = ((size - 4) // 2 for size in (height, width))
        height, width = ((size - 4) // 2 for size in (height, width))
        if min(height, width) < 1:
            raise InputError(f"lenet5 needs images of at least 16 x 16, got {input_shape[1]} x {input_shape[2]}")
        self.conv1 = nn.Conv2d(channels, 20, 5)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(50 * height * width, 500)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(500, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] -> logits [N, classes]."""
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        return self.fc2(self.relu3(self.fc1(self.flatten(x))))  # type: ignore[no-any-return]


def lenet5(*, classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """LeNet-5 in Caffe's sizes (20, 50, 500): 431,080 parameters on MNIST."""
    return LeNet5(input_shape, classes)
