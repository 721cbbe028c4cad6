"""What a kernel is: a hashable description that declares its computation, schedules it and knows the right answer."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import tvm
import tvm.s_tir
from tvm import te

from backends.tvm.target import Cpu

Array = npt.NDArray[Any]
Expression = Any
"""A number as TVM's expressions hold it."""

PARALLEL_WORK = 1 << 18
"""Multiply-adds or elements below which waking another thread costs more than it brings."""
_ANY_CPU = Cpu("generic", lanes=16, registers=32, latency_accumulators=9.2)
"""Operands are the same on each."""


class Kernel(ABC):
    """One compiled operator. Subclasses are frozen dataclasses whose fields are all that its code depends on, so equal
    descriptions share one function, and the description is what a latency is looked up by."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output buffer."""

    @property
    def output_dtype(self) -> str:
        """Type of the output's elements."""
        return "float32"

    @abstractmethod
    def declare(self, cpu: Cpu) -> list[Any]:
        """Tensor expressions: the inputs in calling order, then the output."""

    @abstractmethod
    def schedule(self, schedule: Any, cpu: Cpu) -> None:
        """Turns the declared computation, in place, into the loops that run."""

    @abstractmethod
    def reference(self, operands: Sequence[Array]) -> Array:
        """What torch computes from the operands, in the shape of the output."""

    @property
    def recipe(self) -> str:
        """Text that tells this kernel from every other, the same in each process: kind(field=value,...), without the
        fields that have their default."""
        return _canonical(self, self.kind)

    @property
    def work(self) -> float:
        """Multiply-adds, or elements computed where there are none."""
        return float(product(self.output_shape))

    @property
    def traffic(self) -> float:
        """Bytes of all operands and of the output."""
        buffers = [*self.operand_types(_ANY_CPU), (self.output_shape, self.output_dtype)]
        return float(sum(product(shape) * np.dtype(dtype).itemsize for shape, dtype in buffers))

    def build(self, cpu: Cpu) -> Any:
        """The scheduled function."""
        schedule = tvm.s_tir.Schedule(te.create_prim_func(self.declare(cpu)))
        self.schedule(schedule, cpu)
        return schedule.mod["main"].without_attr("global_symbol")

    def operand_types(self, cpu: Cpu) -> list[tuple[tuple[int, ...], str]]:
        """Shape and type of each operand, in calling order."""
        return [
            (tuple(int(extent) for extent in operand.shape), str(operand.dtype)) for operand in self.declare(cpu)[:-1]
        ]

    def example_operands(self, cpu: Cpu, generator: np.random.Generator) -> list[Array]:
        """Random operands that a call may have: bytes are any, other whole numbers positions within what they index,
        and weights are scaled so that a sum of products has about the spread of one of them."""
        operands: list[Array] = []
        for operand in self.declare(cpu)[:-1]:
            shape, dtype = tuple(int(extent) for extent in operand.shape), np.dtype(str(operand.dtype))
            if dtype.itemsize == 1:
                operands.append(
                    generator.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)
                )
                continue
            if dtype == np.int32:
                operands.append(np.ascontiguousarray(self.example_table(shape, generator), dtype=np.int32))
                continue
            values = generator.standard_normal(shape, dtype=np.float32)
            if operand.op.name == "weight":
                values *= np.float32(math.sqrt(product(self.output_shape) / self.work))
            operands.append(values)
        return operands

    def example_table(self, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
        """Valid values of the int32 operand, for kernels that have one."""
        raise NotImplementedError(f"{self.kind} has no table")


def _canonical(value: Any, name: str | None = None) -> str:
    """A value as text that does not depend on process, platform or version of Python."""
    if dataclasses.is_dataclass(value):
        fields = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
        parts = [f"{field.name}={_canonical(part)}" for field, part in fields if part != field.default]
        return f"{name or type(value).__name__}({','.join(parts)})"
    if isinstance(value, tuple):
        return f"({','.join(map(_canonical, value))})"
    if isinstance(value, np.generic):
        value = value.item()
    return str(value)  # of a float, the shortest text that reads back as the same number


@dataclass(frozen=True, slots=True)
class Span:
    """How a reduction walks over an input's channels: `steps` groups of `width` neighbours, group i starting at
    position start + i*width, or, where they lie irregularly (start is None), at the i-th entry of a table."""

    steps: int
    width: int
    start: int | None

    def positions(self, tables: Sequence[Array]) -> Array:
        """[steps*width] every position that is read, given the operands that the table, if there is one, begins."""
        first = tables[0] if self.start is None else self.start + self.width * np.arange(self.steps)
        return (first[:, None] + np.arange(self.width)).reshape(-1)

    def example(self, extent: int, generator: np.random.Generator) -> Array:
        """[steps] random table of groups among so many positions."""
        return generator.integers(0, extent // self.width, self.steps) * self.width


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


def vectorize_inner(schedule: Any, block: Any) -> None:
    """Vectorises the innermost loop of a block."""
    schedule.vectorize(schedule.get_loops(block)[-1])


def parallelize(schedule: Any, loops: Sequence[Any], work: float, cpu: Cpu) -> Any:
    """Fuses adjacent outer loops and spreads them over the threads where there is work enough for it."""
    fused = schedule.fuse(*loops) if len(loops) > 1 else loops[0]
    if worth_threads(work, cpu):
        schedule.parallel(fused)
    return fused


def worth_threads(work: float, cpu: Cpu) -> bool:
    """Whether there is work enough to spread it over the threads."""
    return threads_for(work, cpu) > 1


def threads_for(work: float, cpu: Cpu) -> int:
    """How many threads there is work enough for: all or one."""
    return cpu.threads if work >= PARALLEL_WORK else 1


def unpack_blocks(buffer: Array) -> Array:
    """[N, blocks, H, W, lanes] -> [N, blocks*lanes, H, W]."""
    n, blocks, rows, columns, lanes = buffer.shape
    return np.ascontiguousarray(buffer.transpose(0, 1, 4, 2, 3)).reshape(n, blocks * lanes, rows, columns)


def pack_blocks(channels: Array | torch.Tensor, lanes: int) -> Array:
    """[N, blocks*lanes, H, W] -> [N, blocks, H, W, lanes]."""
    n, count, rows, columns = channels.shape
    blocked = np.asarray(channels).reshape(n, count // lanes, lanes, rows, columns)
    return np.ascontiguousarray(blocked.transpose(0, 1, 3, 4, 2))


def framed(channels: Array, window: Window, size: tuple[int, int], fill: float = 0.0) -> torch.Tensor:
    """[N, C, H, W] with the border, and no more of the map, than so many outputs of the window read."""
    (top, left), (height, width) = window.padding[:2], channels.shape[2:]
    bottom = window.span(0, size[0]) - top - height
    right = window.span(1, size[1]) - left - width
    return F.pad(torch.from_numpy(channels), (left, right, top, bottom), value=fill)


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
