"""What a kernel is: a hashable description that can declare its computation and schedule it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import tvm
import tvm.s_tir
from tvm import te, tirx

from backends.tvm.target import Cpu

Expression = Any
"""A number as TVM's expressions hold it."""

_PARALLEL_WORK = 1 << 18
"""Multiply-adds or elements below which waking another thread costs more than it brings."""


class Kernel(ABC):
    """One compiled operator. Subclasses are frozen dataclasses whose fields are all that its code depends on, so equal
    descriptions share one function, and the description is what a latency is looked up by."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output buffer."""

    @abstractmethod
    def declare(self, cpu: Cpu) -> list[Any]:
        """Tensor expressions: the inputs in calling order, then the output."""

    @abstractmethod
    def schedule(self, schedule: Any, cpu: Cpu) -> None:
        """Turns the declared computation, in place, into the loops that run."""

    def build(self, cpu: Cpu) -> Any:
        """The scheduled function."""
        schedule = tvm.s_tir.Schedule(te.create_prim_func(self.declare(cpu)))
        self.schedule(schedule, cpu)
        return schedule.mod["main"].without_attr("global_symbol")


@dataclass(frozen=True, slots=True)
class Span:
    """How a reduction walks over an input's channels: `steps` groups of `width` neighbours, group i starting at
    position start + i*width, or, where they lie irregularly (start is None), at the i-th entry of a table."""

    steps: int
    width: int
    start: int | None


@dataclass(frozen=True, slots=True)
class Window:
    """The sliding window of a convolution or pooling: (rows, columns) each; padding is (top, left, bottom, right)."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    def span(self, axis: int, outputs: int) -> int:
        """Inputs, padding included, that so many outputs along the axis read."""
        return (outputs - 1) * self.stride[axis] + (self.kernel[axis] - 1) * self.dilation[axis] + 1


def padded(source: Any, window: Window, rows: int, columns: int, fill: float = 0.0) -> Any:
    """The input [..., H, W(, lanes)] with the border that rows x columns outputs of the window read; itself if none."""
    blocked = len(source.shape) == 5
    height, width = (int(extent) for extent in source.shape[2:4])
    top, left = window.padding[:2]
    need_rows, need_columns = window.span(0, rows), window.span(1, columns)
    if not top and not left and need_rows <= height and need_columns <= width:
        return source
    shape = (*source.shape[:2], need_rows, need_columns, *([source.shape[4]] if blocked else []))

    def element(n: Any, c: Any, h: Any, w: Any, *lane: Any) -> Any:
        inside = tirx.all(h >= top, h < height + top, w >= left, w < width + left)
        return tirx.if_then_else(inside, source[(n, c, h - top, w - left, *lane)], tirx.const(fill, source.dtype))

    return te.compute(shape, element, name="pad")


def block_named(schedule: Any, name: str) -> Any | None:
    """The block of that name, or None where the computation has none."""
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        if schedule.get(block).name_hint == name:
            return block
    return None


def vectorize_inner(schedule: Any, block: Any) -> None:
    """Vectorises the innermost loop of a block."""
    schedule.vectorize(schedule.get_loops(block)[-1])


def parallelize(schedule: Any, loops: Sequence[Any], work: int, cpu: Cpu) -> Any:
    """Fuses adjacent outer loops and spreads them over the threads where there is work enough for it."""
    fused = schedule.fuse(*loops) if len(loops) > 1 else loops[0]
    if cpu.threads > 1 and work >= _PARALLEL_WORK:
        schedule.parallel(fused)
    return fused


def product(extents: Sequence[int]) -> int:
    """Product of extents.

    >>> product((2, 3, 4))
    24
    """
    result = 1
    for extent in extents:
        result *= extent
    return result


def block_count(channels: int, lanes: int) -> int:
    """Blocks that so many channels need."""
    return -(-channels // lanes)
