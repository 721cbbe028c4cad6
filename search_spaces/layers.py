"""A layer with weights as plain data, and how its channels shrink.

Every tensor dimension that pruning can shrink is an `Extent`: a fixed part plus, for each channel group, a number of
entries for every unit that the group keeps. That one idea covers residual sums (two layers with the same group),
depthwise convolution, concatenation (several groups in one dimension), flattening (H * W entries a unit) and padded
or shuffled channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

FLOAT32_BYTES = 4
FLOAT32_BITS = 32


@dataclass(frozen=True, slots=True)
class Extent:
    """Size of one tensor dimension: `fixed + sum(entries * kept[group])`.

    Attributes:
        fixed: entries that no group can remove.
        terms: (index of the channel group, entries for each unit it keeps).
    """

    fixed: int = 0
    terms: tuple[tuple[int, int], ...] = ()

    def size(self, kept: Sequence[int]) -> int:
        """Size where group i keeps kept[i] units."""
        total = self.fixed
        for group, entries in self.terms:
            total += entries * kept[group]
        return total

    def real_size(self, kept: Sequence[float]) -> float:
        """The same for unrounded numbers of units, as AMC's bounding computes with."""
        return self.fixed + sum(entries * kept[group] for group, entries in self.terms)


FIXED = Extent()
"""Of what has no axis that shrinks."""


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """A layer with weights (convolution or linear), as it stands after a policy.

    Attributes:
        name: qualified name of the module.
        kind: "conv", "linear", or "conv_transpose", which is counted and never pruned.
        in_channels, out_channels: channels (features of a linear layer).
        kernel, stride, padding, dilation: by spatial dimension; empty for a linear layer.
        groups: of a grouped convolution; equal to in_channels where it is depthwise.
        input_size, output_size: spatial sizes; empty for a linear layer.
        positions: outputs an image and channel, over all calls of the layer (inputs, of a transposed convolution).
        bias: whether the layer has one.
        in_extent, out_extent: how the channels shrink.
        weight_bits: bits of each weight; the bias stays float32.
        activation_bits: bits of each value it reads.
    """

    name: str
    kind: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    positions: int
    bias: bool
    in_extent: Extent
    out_extent: Extent
    weight_bits: int = FLOAT32_BITS
    activation_bits: int = FLOAT32_BITS

    @property
    def depthwise(self) -> bool:
        """Whether each output channel reads one input channel only."""
        return self.kind == "conv" and self.groups == self.in_channels and self.groups > 1

    @property
    def weights(self) -> int:
        """Number of weights, bias not counted."""
        return self.in_channels // self.groups * self.out_channels * prod(self.kernel)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image, bias not counted."""
        return self.weights * self.positions

    @property
    def params(self) -> int:
        """Weights and bias."""
        return self.weights + (self.out_channels if self.bias else 0)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights, bias and scales not counted."""
        return -(-self.weights * self.weight_bits // 8)
