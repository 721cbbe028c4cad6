"""Pooling: maximum and average over windows, average over the whole feature map."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from tvm import te, tirx

from backends.tvm.kernels.base import Array, Expression, Kernel, pack_blocks, parallelize, product, unpack_blocks
from backends.tvm.kernels.depthwise import Position, Reduction
from backends.tvm.kernels.loops import LEAST
from backends.tvm.target import Cpu


@dataclass(frozen=True, slots=True)
class MaxPool(Reduction):
    """Maximum over the window, of numbers or of codes; the border never wins.

    Attributes:
        dtype: "float32" or "uint8".
    """

    kind: ClassVar[str] = "max_pool"

    dtype: str = "float32"

    @property
    def initial(self) -> float:
        """Below every number, and not above any code."""
        return LEAST if self.dtype == "float32" else 0

    @property
    def output_dtype(self) -> str:
        """The elements' own."""
        return self.dtype

    @property
    def operand_dtypes(self) -> Mapping[str, str]:
        """The elements' own."""
        return {"source": self.dtype}

    def reduce(self, value: Expression, element: Expression, position: Position, operands: Sequence[Any]) -> Expression:
        """Maximum."""
        return te.max(value, element)

    def finish(self, value: Expression, index: tuple[Expression, ...], operands: Sequence[Any]) -> Expression:
        """As it is."""
        return value

    def reference(self, operands: Sequence[Array]) -> Array:
        """torch's, which has none of codes."""
        image = self.image(operands).float()
        maxima = F.max_pool2d(image, self.window.kernel, self.window.stride, dilation=self.window.dilation)
        return pack_blocks(maxima, self.source[4]).astype(self.dtype)


@dataclass(frozen=True, slots=True)
class AveragePool(Reduction):
    """Average over the window.

    Attributes:
        count_border: whether the padding (not what ceil_mode adds beyond it) counts as elements, as torch has it.
    """

    kind: ClassVar[str] = "average_pool"

    count_border: bool = True

    def reduce(self, value: Expression, element: Expression, position: Position, operands: Sequence[Any]) -> Expression:
        """Sum."""
        return value + element

    def finish(self, value: Expression, index: tuple[Expression, ...], operands: Sequence[Any]) -> Expression:
        """Divides by the number of elements."""
        divisor = self._counted(0, index[2]) * self._counted(1, index[3])
        if isinstance(divisor, int):
            return value * tirx.const(1.0 / divisor, "float32")
        return value / divisor.astype("float32")

    def reference(self, operands: Sequence[Array]) -> Array:
        """torch's sum, over torch's sum of what counts."""

        def summed(image: torch.Tensor) -> torch.Tensor:
            return F.avg_pool2d(image, self.window.kernel, self.window.stride, divisor_override=1)

        top, left, bottom, right = self.window.padding
        counted = F.pad(
            torch.ones(1, 1, *self.source[2:4]), (left, right, top, bottom), value=1.0 if self.count_border else 0.0
        )
        beyond = [self.window.span(axis, self.size[axis]) - counted.shape[2 + axis] for axis in (1, 0)]
        counted = F.pad(counted, (0, beyond[0], 0, beyond[1]))
        return pack_blocks(summed(self.image(operands)) / summed(counted), self.source[4])

    def _counted(self, axis: int, position: Any) -> Any:
        """Elements that count along an axis: the kernel's extent where no window leaves the map, else by position."""
        kernel, stride = self.window.kernel[axis], self.window.stride[axis]
        before, after, extent = self.window.padding[axis], self.window.padding[axis + 2], self.source[2 + axis]
        border_before, border_after = (before, after) if self.count_border else (0, 0)
        whole = self.window.span(axis, self.size[axis]) <= extent + before + border_after
        if whole and before == border_before:
            return kernel
        start = position * stride - before
        smaller, larger = (min, max) if isinstance(start, int) else (te.min, te.max)
        return smaller(start + kernel, extent + border_after) - larger(start, -border_before)


@dataclass(frozen=True, slots=True)
class GlobalAverage(Kernel):
    """Average over rows and columns: [N, blocks, H, W, lanes] -> [N, blocks, 1, 1, lanes]."""

    kind: ClassVar[str] = "global_average"

    source: tuple[int, int, int, int, int]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """[N, blocks, 1, 1, lanes]."""
        return *self.source[:2], 1, 1, self.source[4]

    @property
    def work(self) -> float:
        """Elements that are summed."""
        return float(product(self.source))

    def reference(self, operands: Sequence[Array]) -> Array:
        """torch's mean."""
        return pack_blocks(torch.from_numpy(unpack_blocks(operands[0])).mean((2, 3), keepdim=True), self.source[4])

    def declare(self, cpu: Cpu) -> list[Any]:
        """Sum, then scale."""
        source = te.placeholder(self.source, name="source")
        y, x = te.reduce_axis((0, self.source[2]), "y"), te.reduce_axis((0, self.source[3]), "x")
        sums = te.compute(
            self.output_shape, lambda n, o, h, w, v: te.sum(source[n, o, y, x, v], axis=[y, x]), name="sum"
        )
        scale = tirx.const(1.0 / (self.source[2] * self.source[3]), "float32")
        return [source, te.compute(self.output_shape, lambda *index: sums[index] * scale, name="out")]

    def schedule(self, schedule: Any, cpu: Cpu) -> None:
        """One accumulator a block."""
        sums, out = schedule.get_sblock("sum"), schedule.get_sblock("out")
        n, o, _, w, v = schedule.get_loops(out)
        schedule.set_scope(sums, 0, "local")
        schedule.compute_at(sums, w, preserve_unit_loops=True)
        schedule.vectorize(v)
        v_tile, y, x = schedule.get_loops(sums)[-3:]
        schedule.reorder(y, x, v_tile)
        schedule.vectorize(v_tile)
        parallelize(schedule, (n, o), self.work, cpu)
        schedule.vectorize(schedule.get_loops(schedule.decompose_reduction(sums, y))[-1])
