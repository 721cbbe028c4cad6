"""A layer with weights as plain data, and how its channels shrink.

Every tensor dimension that pruning can shrink is an `Extent`: a fixed part plus, for each channel group, a number of
entries for every unit that the group keeps. That one idea covers residual sums (two layers with the same group),
depthwise convolution, concatenation (several groups in one dimension), flattening (H * W entries a unit) and padded
or shuffled channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from search_spaces.errors import InputError
from search_spaces.number_formats import NumberFormat
from search_spaces.sparsity import Sparsity, Stored, stored

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
        weight_format: of its weights, None where they are float32; the bias is.
        activation_format: of the values it reads, None where they are float32.
        sparsity: of its weights, None where they are dense.
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
    weight_format: NumberFormat | None = None
    activation_format: NumberFormat | None = None
    sparsity: Sparsity | None = None

    def shrunk(self, kept: Sequence[int]) -> "LayerSpec":
        """The layer where channel group i keeps kept[i] units."""
        if not (self.in_extent.terms or self.out_extent.terms):
            return self
        inputs, outputs = self.in_extent.size(kept), self.out_extent.size(kept)
        groups = inputs if self.depthwise else self.groups
        return replace(self, in_channels=inputs, out_channels=outputs, groups=groups)

    def cropped(self, kernel: int) -> "LayerSpec":
        """The layer with the middle of its kernel alone, `kernel` wide in each dimension; it gives as many outputs.

        Raises:
            InputError: no convolution, a kernel without a middle so wide, or less padding than goes with the rest.
        """
        if self.kind != "conv":
            raise InputError(f"layer {self.name!r} is no convolution and has no kernel to crop; leave out its kernel")
        margins = [(side - kernel) // 2 for side in self.kernel]
        if any(side < kernel or (side - kernel) % 2 for side in self.kernel):
            sides = " x ".join(map(str, self.kernel))
            raise InputError(f"layer {self.name!r}: a kernel of {sides} has no middle that is {kernel} wide")
        padding = tuple(
            pad - dilation * margin for pad, dilation, margin in zip(self.padding, self.dilation, margins, strict=True)
        )
        if min(padding) < 0:
            raise InputError(
                f"layer {self.name!r}: without the padding of {self.padding} a kernel {kernel} wide would give more "
                "outputs; leave its kernel whole"
            )
        return replace(self, kernel=(kernel,) * len(self.kernel), padding=padding)

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
    def weight_shape(self) -> tuple[int, ...]:
        """[out, in / groups, *kernel]; of a transposed convolution [in, out / groups, *kernel]."""
        if self.kind == "conv_transpose":
            return self.in_channels, self.out_channels // self.groups, *self.kernel
        return self.out_channels, self.in_channels // self.groups, *self.kernel

    @property
    def weight_bits(self) -> int:
        """Bits of each weight."""
        return FLOAT32_BITS if self.weight_format is None else self.weight_format.bits

    @property
    def activation_bits(self) -> int:
        """Bits of each value it reads."""
        return FLOAT32_BITS if self.activation_format is None else self.activation_format.bits

    @property
    def nonzeros(self) -> int:
        """Weights that its sparsity leaves."""
        return self.weights if self.sparsity is None else self.sparsity.nonzeros(self.weight_shape)

    @property
    def stored(self) -> Stored:
        """How its weights are stored: the form, and bits with index, scales and codebooks; the bias not counted."""
        has_zero = self.weight_format is None or self.weight_format.zero
        found = stored(self.weight_shape, self.weight_bits, self.sparsity, has_zero)
        side = 0 if self.weight_format is None else self.weight_format.side_bits(self.weight_shape)
        return Stored(found.form, found.bits + side)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the stored weights."""
        return -(-self.stored.bits // 8)
