"""Loops written out one by one, for kernels whose order of work no schedule of independent elements expresses."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as script

from backends.tvm.kernels.base import Expression, Kernel
from backends.tvm.target import Cpu

LEAST = -3.402823e38
"""Below every number that occurs, so that it wins no maximum."""

Registers = dict[tuple[int, ...], Any]


@dataclass(frozen=True, slots=True)
class Cover:
    """An extent covered by tiles of one width, of which the last may overlap the one before: so every tile is whole,
    whatever the extent (197 tokens have no divisor).

    >>> cover = Cover.of(197, 28)
    >>> cover.width, cover.count
    (25, 8)
    """

    extent: int
    width: int

    @classmethod
    def of(cls, extent: int, most: int) -> "Cover":
        """As few tiles as have at most that width, as narrow as so many can be."""
        return cls(extent, -(-extent // -(-extent // most)))

    @property
    def count(self) -> int:
        """How many tiles there are."""
        return -(-self.extent // self.width)

    def start(self, tile: Expression) -> Expression:
        """Where a tile begins."""
        if self.extent % self.width == 0:
            return tile * self.width
        return tirx.min(tile * self.width, self.extent - self.width)

    def owns(self, tile: Expression, position: Expression) -> Expression:
        """Whether no earlier tile holds that position too; the one that does not own it must not write it, since
        another thread may be writing there."""
        return position >= tile * self.width


class WrittenKernel(Kernel):
    """A kernel whose loops are written as they run, rather than scheduled."""

    @property
    @abstractmethod
    def operand_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each operand by its name, in calling order."""

    @property
    def operand_dtypes(self) -> Mapping[str, str]:
        """Types of the operands by name: "table" holds int32; those that are missing hold float32."""
        return {"table": "int32"}

    @abstractmethod
    def write(self, cpu: Cpu, *buffers: Any) -> None:
        """Writes the loops, given the buffers of the operands and of the output."""

    def declare(self, cpu: Cpu) -> list[Any]:
        """One opaque block of loops."""

        def statement(sources: Sequence[Any], outputs: Sequence[Any]) -> Any:
            with IRBuilder() as builder, script.seq_scope():
                self.write(cpu, *sources, *outputs)
            return builder.get().body  # without the scope's pragma, which LLVM's generator does not know

        dtypes = self.operand_dtypes
        operands = [
            te.placeholder(shape, name=name, dtype=dtypes.get(name, "float32"))
            for name, shape in self.operand_shapes.items()
        ]
        buffers = {
            "in_buffers": [tirx.decl_buffer(operand.shape, operand.dtype, operand.name) for operand in operands],
            "out_buffers": [tirx.decl_buffer(self.output_shape, self.output_dtype, "out")],
        }
        out = te.extern(self.output_shape, operands, statement, name="out", dtype=self.output_dtype, **buffers)
        return [*operands, out]

    def schedule(self, schedule: Any, cpu: Cpu) -> None:
        """Nothing is left to do."""


def spread(extent: int, threads: bool) -> Any:
    """The outermost loop, over the threads if so asked. A context manager that gives the index, like those below."""
    return (script.parallel if threads else script.serial)(0, extent)


@contextmanager
def spread_over(
    extents: Sequence[int], threads: int = 1, order: Sequence[int] = ()
) -> Iterator[tuple[Expression, ...]]:
    """The outermost loops, one within the other.

    Of several threads each has a band of one loop: of the first, in the given order of preference, that they can share
    evenly. Where there is none, all loops become one.
    """
    with ExitStack() as stack:
        if threads == 1:
            yield tuple(stack.enter_context(script.serial(0, extent)) for extent in extents)
            return
        shared = next((axis for axis in order or range(len(extents)) if _even(extents[axis], threads)), None)
        indices: list[Expression] = []
        if shared is None:
            index = stack.enter_context(script.parallel(0, math.prod(extents)))
            for extent in reversed(extents):
                indices.insert(0, index % extent)
                index = index // extent
        else:
            band = stack.enter_context(script.parallel(0, threads))
            for axis, extent in enumerate(extents):
                first = band * extent // threads if axis == shared else 0
                count = (band + 1) * extent // threads - first if axis == shared else extent
                # from 0: where a loop starts elsewhere, TVM gets the bounds of those within it wrong
                indices.append(first + stack.enter_context(script.serial(0, count)))
        yield tuple(indices)


def _even(extent: int, threads: int) -> bool:
    """Whether no thread gets more than an eighth more than another."""
    return extent % threads == 0 or extent >= 8 * threads


def by_band(shape: Sequence[int]) -> tuple[int, ...]:
    """In which order of preference threads share the loops over images, channels and rows of a map [N, blocks, H, W,
    lanes].

    What another core has computed must be fetched from its cache, weights from a cache that all share. A thread that
    has the same rows in each layer fetches little but weights, one that has the same channels half of every input. So
    the rows are shared where a map has more pixels than channels. (MobileNetV1 at 224 px on two threads: 4.1 ms by
    channels throughout, 3.5 ms so.)
    """
    _, blocks, rows, columns, lanes = shape
    return (0, 2, 1) if rows * columns >= blocks * lanes else (0, 1, 2)


def serial(extent: Expression) -> Any:
    """A plain loop."""
    return script.serial(0, extent)


def between(first: Expression, last: Expression) -> Any:
    """A plain loop from a first to a last (exclusive) index."""
    return script.serial(first, last)


def vector(lanes: int) -> Any:
    """A loop that becomes one vector instruction."""
    return script.vectorized(0, lanes)


def when(condition: Expression) -> Any:
    """What runs only under a condition; `with when(...), then():`."""
    return script.If(condition)


def then() -> Any:
    """See `when`."""
    return script.Then()


def scratch(*shape: int) -> Any:
    """Memory that belongs to an iteration of the enclosing loop. Below 1 KiB TVM keeps it on the stack, where LLVM
    finds registers for it; more is fetched from a pool by a call."""
    return script.alloc_buffer(shape, "float32")


def registers(lanes: int, *extents: int) -> Registers:
    """A tile of vector registers that hold zero, by index: each its own little buffer, so that none exceeds 1 KiB."""
    tile = {index: scratch(lanes) for index in product(*map(range, extents))}
    for register in tile.values():
        fill(register, lanes, 0.0)
    return tile


def accumulators(*shape: int, value: float = 0.0, dtype: str = "float32") -> Any:
    """A tile of vector registers [..., lanes] that hold a value: one buffer, indexed by `each` and `vector` loops."""
    tile = script.alloc_buffer(shape, dtype, scope="local")
    with each(*map(range, shape[:-1])) as indices, vector(shape[-1]) as v:
        store(tile, (*indices, v), constant(value, dtype))
    return tile


@contextmanager
def each(*ranges: range) -> Iterator[tuple[Expression, ...]]:
    """Every combination of indices, written out, the last changing fastest. That is done late: statements that are
    written out from the start cost time to compile."""
    with ExitStack() as stack:
        yield tuple(stack.enter_context(script.unroll(one.start, one.stop)) for one in ranges)


def fill(register: Any, lanes: int, value: float) -> None:
    """Sets all lanes of a register."""
    with vector(lanes) as v:
        store(register, (v,), constant(value))


def store(buffer: Any, index: Sequence[Expression], value: Expression) -> None:
    """buffer[index] = value."""
    script.buffer_store(buffer, value, list(index))


def add(buffer: Any, index: Sequence[Expression], value: Expression) -> None:
    """buffer[index] += value."""
    store(buffer, index, buffer[tuple(index)] + value)


def fold(register: Any, lanes: int, combine: Callable[[Expression, Expression], Expression]) -> Expression:
    """All lanes of a register combined, by halves; overwrites it."""
    while lanes > 1:
        lanes //= 2
        with vector(lanes) as v:
            store(register, (v,), combine(register[v], register[v + lanes]))
    return register[0]


def constant(number: float, dtype: str = "float32") -> Expression:
    """The number."""
    return tirx.const(number, dtype)
