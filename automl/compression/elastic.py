"""What a supernet knows of its sub-networks beside the weights that they share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor

from search_spaces.layers import LayerSpec

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Elastic:
    """How sub-networks are cut out of the largest network.

    Attributes:
        order: the units of every channel group, by its name; the first ones stay longest.
        transforms: by "layer.width", what becomes of the middle of a kernel that is cropped to a width: a matrix
            [n, n] that the n weights between a pair of channels are multiplied by. A kernel is cropped from one width
            to the next: Cai et al., "Once-for-All: Train One Network and Specialize it for Efficient Deployment", ICLR
            2020, section 3.3.
    """

    order: Mapping[str, IntArray]
    transforms: Mapping[str, Tensor] = field(default_factory=dict)

    def cropped(self, weight: Tensor, wanted: LayerSpec) -> Tensor:
        """Kernels of another size, differentiable.

        Args:
            weight: [out, in, *kernel] of the layer, with all its channels or not.
            wanted: the layer, cropped.
        """
        width, rank = wanted.kernel[0], len(wanted.kernel)
        for passed in self.widths(wanted.name):
            if passed >= width:
                part = middle(weight, (passed,) * rank)
                mixed = part.flatten(2) @ self.transforms[f"{wanted.name}.{passed}"].T
                weight = mixed.view_as(part)
        return middle(weight, wanted.kernel)

    def widths(self, layer: str) -> list[int]:
        """Those that the layer's kernel has learned to be cropped to, falling."""
        found = (key.rpartition(".") for key in self.transforms)
        return sorted((int(width) for name, _, width in found if name == layer), reverse=True)


def middle(weight: Tensor, kernel: Sequence[int]) -> Tensor:
    """The middle of kernels, [out, in, *kernel], as a view of the weights."""
    for axis, side in enumerate(kernel, 2):
        weight = weight.narrow(axis, (weight.shape[axis] - side) // 2, side)
    return weight
