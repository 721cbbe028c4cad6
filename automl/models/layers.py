"""What several families are built from."""

from collections import OrderedDict

from torch import nn


def conv_bn(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = nn.ReLU
) -> nn.Sequential:
    """Convolution (same padding, no bias), batch norm, activation (none where `act` is None)."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv"] = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    parts["bn"] = nn.BatchNorm2d(outputs)
    if act is not None:
        parts["act"] = act()
    return nn.Sequential(parts)


def make_divisible(value: float, divisor: int = 8) -> int:
    """Nearest multiple of `divisor`, at least one, never more than 10 % below (MobileNetV2's rule for channels)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def initialise(network: nn.Module) -> None:
    """He initialisation (fan out) of convolutions, N(0, 0.01) of linear layers, as their papers train them."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


def pooled(pixels: int) -> int:
    """Size after 2x2 pooling."""
    return pixels // 2
