"""From channel blocks to any order of dimensions in torch's layout."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from tvm import te

from backends.tvm.kernels.base import Kernel
from backends.tvm.target import Cpu


@dataclass(frozen=True, slots=True)
class Rearrange(Kernel):
    """[N, blocks, H, W, lanes] -> a plain tensor whose dimensions run over the axes of the image in any order.

    Operands: input, table int32 [C] of the channels' positions.

    Attributes:
        source: shape of the input buffer.
        dims: for each dimension of the output its axes ("n", "c", "h", "w") and their sizes, outer first; the "c"s
            together count the channels.
    """

    kind: ClassVar[str] = "rearrange"

    source: tuple[int, ...]
    dims: tuple[tuple[tuple[str, int], ...], ...]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The sizes of the dimensions."""
        return tuple(prod(size for _, size in dim) for dim in self.dims)

    @property
    def channels(self) -> int:
        """Number of channels."""
        return prod(size for dim in self.dims for axis, size in dim if axis == "c")

    def declare(self, cpu: Cpu) -> list[Any]:
        """A look-up."""
        source = te.placeholder(self.source, name="source")
        table = te.placeholder((self.channels,), name="table", dtype="int32")
        lanes = self.source[4]

        def element(*index: Any) -> Any:
            place: dict[str, Any] = {"n": 0, "c": 0, "h": 0, "w": 0}
            for position, dim in zip(index, self.dims, strict=True):
                inner = 1
                parts = []
                for axis, size in reversed(dim):
                    parts.append((axis, size, position // inner % size if len(dim) > 1 else position))
                    inner *= size
                for axis, size, part in reversed(parts):
                    place[axis] = place[axis] * size + part if axis == "c" else part
            channel = table[place["c"]]
            return source[place["n"], channel // lanes, place["h"], place["w"], channel % lanes]

        return [source, table, te.compute(self.output_shape, element, name="out")]

    def schedule(self, schedule: Any, cpu: Cpu) -> None:
        """As it comes."""

    def example_operands(self, cpu: Cpu, generator: np.random.Generator) -> list[npt.NDArray[Any]]:
        """A buffer, and channels spread over its positions."""
        positions = self.source[1] * self.source[4]
        table = generator.permutation(positions)[: self.channels].astype(np.int32)
        return [generator.standard_normal(self.source).astype(np.float32), table]

    def reference(self, operands: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """By numpy's transposition."""
        source, table = operands
        image = np.moveaxis(source, 4, 2).reshape(self.source[0], -1, *self.source[2:4])[:, table]
        sizes = [(axis, size) for dim in self.dims for axis, size in dim]
        split = [size for axis, size in sizes if axis == "c"]
        names = ["n", *["c"] * len(split), "h", "w"]
        whole = image.reshape(self.source[0], *split, *self.source[2:4])
        order = []
        seen = 0
        for axis, _ in sizes:
            order.append(1 + seen if axis == "c" else names.index(axis))
            seen += axis == "c"
        missing = [place for place in range(whole.ndim) if place not in order]
        moved = whole.transpose([*missing, *order])
        return np.ascontiguousarray(moved.reshape(self.output_shape))
