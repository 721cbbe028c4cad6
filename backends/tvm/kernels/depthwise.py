"""Operators that work on each channel by itself within a sliding window: depthwise convolution, the base of pooling."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from tvm import te

from backends.tvm.kernels.base import (
    Array,
    Kernel,
    Window,
    block_named,
    framed,
    pack_blocks,
    padded,
    parallelize,
    product,
    unpack_blocks,
)
from backends.tvm.kernels.epilogue import NO_EPILOGUE, Epilogue
from backends.tvm.kernels.tiles import divisors
from backends.tvm.target import Cpu

_WIDEST_TILE = 8
_LARGEST_UNROLL = 49  # steps of a window; beyond it the loops stay loops
_PAD_BYTES = 24 * 1024
"""Of the padded copy, kept in the first-level cache between being written and read."""


@dataclass(frozen=True, slots=True)
class PerChannel(Kernel):
    """A window reduction over [N, blocks, H, W, lanes], channel by channel.

    Attributes:
        source: shape of the input buffer.
        size: output rows and columns.
    """

    source: tuple[int, int, int, int, int]
    size: tuple[int, int]
    window: Window

    fill: ClassVar[float] = 0.0
    """What the border holds."""

    @property
    def output_shape(self) -> tuple[int, ...]:
        """[N, blocks, rows, columns, lanes]."""
        return *self.source[:2], *self.size, self.source[4]

    @property
    def work(self) -> float:
        """Elements of all windows."""
        return float(product(self.output_shape) * product(self.window.kernel))

    def image(self, operands: Sequence[Array]) -> torch.Tensor:
        """The channels [N, C, H, W] with the border that the windows read."""
        return framed(unpack_blocks(operands[0]), self.window, self.size, self.fill)

    @abstractmethod
    def reduction(self, image: Any, operands: list[Any]) -> Any:
        """The tensor named "sum": the window reduced over axes kh and kw; may append to the operands."""

    @abstractmethod
    def finish(self, sums: Any, operands: list[Any]) -> Any:
        """The tensor named "out"; may append to the operands."""

    def declare(self, cpu: Cpu) -> list[Any]:
        """Pad, reduce, finish."""
        source = te.placeholder(self.source, name="source")
        operands = [source]
        image = padded(source, self.window, *self.size, self.fill)
        out = self.finish(self.reduction(image, operands), operands)
        return [*operands, out]

    def window_axes(self) -> tuple[Any, Any]:
        """The reduction axes."""
        return te.reduce_axis((0, self.window.kernel[0]), "kh"), te.reduce_axis((0, self.window.kernel[1]), "kw")

    def at(self, image: Any, index: tuple[Any, ...], kh: Any, kw: Any) -> Any:
        """The input element under the window of an output element."""
        n, o, h, w, v = index
        y = h * self.window.stride[0] + kh * self.window.dilation[0]
        x = w * self.window.stride[1] + kw * self.window.dilation[1]
        return image[n, o, y, x, v]

    def schedule(self, schedule: Any, cpu: Cpu) -> None:
        """A few pixels of one row in registers, the window unrolled; the padded copy is made for as many rows as the
        cache holds, right before they are read."""
        sums, out = schedule.get_sblock("sum"), schedule.get_sblock("out")
        n, o, h, w, v = schedule.get_loops(out)
        w_outer, w_inner = schedule.split(w, [None, max(d for d in divisors(self.size[1]) if d <= _WIDEST_TILE)])
        h_outer, _ = schedule.split(h, [None, self._rows_in_cache()])
        schedule.set_scope(sums, 0, "local")
        schedule.compute_at(sums, w_outer, preserve_unit_loops=True)
        schedule.vectorize(v)
        schedule.unroll(w_inner)
        w_tile, v_tile, kh, kw = schedule.get_loops(sums)[-4:]
        schedule.reorder(kh, kw, w_tile, v_tile)
        schedule.vectorize(v_tile)
        schedule.unroll(w_tile)
        if (pad := block_named(schedule, "pad")) is not None:
            schedule.compute_at(pad, h_outer, preserve_unit_loops=True)
            schedule.vectorize(schedule.get_loops(pad)[-1])
        parallelize(schedule, (n, o, h_outer), self.work, cpu)
        *_, w_zero, v_zero = schedule.get_loops(schedule.decompose_reduction(sums, kh))
        schedule.vectorize(v_zero)
        schedule.unroll(w_zero)
        if product(self.window.kernel) <= _LARGEST_UNROLL:
            schedule.unroll(kh)
            schedule.unroll(kw)

    def _rows_in_cache(self) -> int:
        """The most output rows (a divisor) whose padded input rows fit the cache."""
        row_bytes = self.window.span(1, self.size[1]) * self.source[4] * 4
        fitting = [d for d in divisors(self.size[0]) if self.window.span(0, d) * row_bytes <= _PAD_BYTES]
        return max(fitting, default=1)


@dataclass(frozen=True, slots=True)
class Depthwise(PerChannel):
    """Depthwise convolution. Operands: input, weight [blocks, kh, kw, lanes], bias [blocks, lanes], residual."""

    kind: ClassVar[str] = "depthwise"

    epilogue: Epilogue = NO_EPILOGUE

    def reduction(self, image: Any, operands: list[Any]) -> Any:
        """Weighted sum of the window."""
        lanes = self.source[4]
        weight = te.placeholder((self.source[1], *self.window.kernel, lanes), name="weight")
        operands.append(weight)
        kh, kw = self.window_axes()
        return te.compute(
            self.output_shape,
            lambda n, o, h, w, v: te.sum(self.at(image, (n, o, h, w, v), kh, kw) * weight[o, kh, kw, v], axis=[kh, kw]),
            name="sum",
        )

    def finish(self, sums: Any, operands: list[Any]) -> Any:
        """Bias, residual, activation."""
        bias = te.placeholder((self.source[1], self.source[4]), name="bias")
        operands.append(bias)
        residual = None
        if self.epilogue.residual:
            residual = te.placeholder(self.output_shape, name="residual")
            operands.append(residual)
        return te.compute(
            self.output_shape,
            lambda n, o, h, w, v: self.epilogue.apply(
                sums[n, o, h, w, v], bias[o, v], None if residual is None else residual[n, o, h, w, v]
            ),
            name="out",
        )

    def reference(self, operands: Sequence[Array]) -> Array:
        """torch's convolution of as many groups as there are channels."""
        _, weight, bias, *rest = operands
        channels = bias.size
        filters = weight.transpose(0, 3, 1, 2).reshape(channels, 1, *self.window.kernel)
        sums = F.conv2d(
            self.image(operands),
            torch.from_numpy(filters),
            torch.from_numpy(bias.reshape(-1)),
            self.window.stride,
            dilation=self.window.dilation,
            groups=channels,
        )
        residual = torch.from_numpy(unpack_blocks(rest[-1])) if self.epilogue.residual else None
        return pack_blocks(self.epilogue.reference(sums, residual), self.source[4])
