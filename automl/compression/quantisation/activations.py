"""Quantisers of the values that a layer reads: plain modules with buffers, which `torch.export` and ONNX take.

They compute in float32 what the integers stand for ("fake" quantisation). In training mode gradients pass straight
through the rounding (Bengio et al., arXiv 1308.3432) and stop where a value is clipped.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from automl.compression.quantisation.half import DTYPES
from automl.compression.quantisation.power_of_two import magnitudes
from automl.compression.quantisation.straight_through import straight_through
from automl.compression.quantisation.uniform import Grid, code_range
from search_spaces.errors import InputError
from search_spaces.number_formats import SCHEMES, NumberFormat


class ActivationQuantiser(nn.Module, ABC):
    """Rounds every value to one of the levels of a number format.

    Zero stays exactly zero, so zero padding is what it was. A module made anew by `activation_quantiser` takes the
    state dict of one that was calibrated.

    Args:
        format: with one scale for the whole tensor.
    """

    def __init__(self, format: NumberFormat) -> None:
        super().__init__()
        self.format = format

    @abstractmethod
    def clipped(self, x: Tensor) -> Tensor:
        """The values within reach; what gradients see."""

    @abstractmethod
    def rounded(self, x: Tensor) -> Tensor:
        """The levels that the values go to."""

    def forward(self, x: Tensor) -> Tensor:
        """Values of any shape -> levels of that shape."""
        if self.training:
            return straight_through(self.clipped(x), self.rounded(x))
        return self.rounded(x)

    def extra_repr(self) -> str:
        """What printing the module shows."""
        return f"{self.format.bits} bits, {self.format.scheme}"


class UniformActivation(ActivationQuantiser):
    """Equally spaced levels: "symmetric", "asymmetric", and "dorefa", which starts at zero.

    Attributes:
        scale: step between levels, float32, a buffer without axes.
        zero_point: code of zero, int64, a buffer without axes.
        least, most: codes that are used.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, format: NumberFormat, grid: Grid | None = None) -> None:
        super().__init__(format)
        self.least, self.most = code_range(format.bits, format.scheme == "symmetric")
        one = torch.tensor(1.0)
        grid = grid or Grid.spanning(-one, one, format.bits, format.scheme == "symmetric")
        self.register_buffer("scale", grid.scale.detach().clone().reshape(()))
        self.register_buffer("zero_point", grid.zero_point.detach().clone().reshape(()))

    def clipped(self, x: Tensor) -> Tensor:
        """See the base class."""
        low, high = (self.least - self.zero_point) * self.scale, (self.most - self.zero_point) * self.scale
        return torch.minimum(torch.maximum(x, low), high)

    def rounded(self, x: Tensor) -> Tensor:
        """See the base class; operator by operator what ONNX's QuantizeLinear and DequantizeLinear compute."""
        codes = torch.clamp(torch.round(x / self.scale) + self.zero_point, self.least, self.most)
        return (codes - self.zero_point) * self.scale


class PowerOfTwoActivation(ActivationQuantiser):
    """Zero and powers of two (see `power_of_two`).

    Attributes:
        exponent: the largest, int64, a buffer without axes.
    """

    exponent: Tensor

    def __init__(self, format: NumberFormat, exponent: int = 0) -> None:
        super().__init__(format)
        self.register_buffer("exponent", torch.tensor(exponent))

    def clipped(self, x: Tensor) -> Tensor:
        """See the base class."""
        largest = torch.exp2(self.exponent.to(x.dtype))
        return torch.minimum(torch.maximum(x, -largest), largest)

    def rounded(self, x: Tensor) -> Tensor:
        """See the base class."""
        size = x.abs()
        exponent = torch.floor(torch.log2(size * (4 / 3)))
        least = self.exponent - (magnitudes(self.format.bits) - 1)
        # below half of the least level zero is nearer
        far = size >= torch.exp2((least - 1).to(x.dtype))
        level = torch.exp2(torch.minimum(torch.maximum(exponent, least.to(x.dtype)), self.exponent.to(x.dtype)))
        return torch.sign(x) * level * far


class HalfActivation(ActivationQuantiser):
    """Floating point in 16 bits; what is beyond its range becomes its largest number."""

    def clipped(self, x: Tensor) -> Tensor:
        """See the base class."""
        most = torch.finfo(DTYPES[self.format.scheme]).max
        return torch.clamp(x, -most, most)

    def rounded(self, x: Tensor) -> Tensor:
        """See the base class."""
        return self.clipped(x).to(DTYPES[self.format.scheme]).to(x.dtype)


def activation_quantiser(format: NumberFormat) -> ActivationQuantiser:
    """A quantiser that was not calibrated: it waits for a state dict.

    Raises:
        InputError: a scheme for weights only, or a scale for less than the whole tensor.
    """
    known = [name for name, scheme in SCHEMES.items() if scheme.activations]
    if format.scheme not in known:
        raise InputError(f"activations are represented by one of {', '.join(known)}, got {format.scheme!r}")
    if format.granularity != "tensor":
        raise InputError(f"activations have one scale, granularity 'tensor', got {format.granularity!r}")
    if format.scheme in DTYPES:
        return HalfActivation(format)
    if format.scheme == "power_of_two":
        return PowerOfTwoActivation(format)
    return UniformActivation(format)
