"""Operators on each element by itself: affine maps of channels, activations, sums."""

from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import te

from backends.tvm.kernels.base import Kernel, parallelize, product
from backends.tvm.kernels.epilogue import IDENTITY, Activation
from backends.tvm.target import Cpu


@dataclass(frozen=True, slots=True)
class Elementwise(Kernel):
    """Over a buffer of any shape.

    Attributes:
        operation: "copy" (source), "add" (source + other), "multiply" (source * other), or "affine"
            (source * scale + shift, with scale and shift [blocks, lanes], or [size] for a matrix).
        activation: applied last.
    """

    kind: ClassVar[str] = "elementwise"

    shape: tuple[int, ...]
    operation: str
    activation: Activation = IDENTITY

    @property
    def output_shape(self) -> tuple[int, ...]:
        """That of the buffer."""
        return self.shape

    def declare(self, cpu: Cpu) -> list[Any]:
        """One expression."""
        source = te.placeholder(self.shape, name="source")
        operands = [source]
        if self.operation in ("add", "multiply"):
            operands.append(te.placeholder(self.shape, name="other"))
        elif self.operation == "affine":
            channels = (self.shape[1], *self.shape[4:])
            operands += [te.placeholder(channels, name="scale"), te.placeholder(channels, name="shift")]

        def element(*index: Any) -> Any:
            value = source[index]
            channel = (index[1], *index[4:])
            if self.operation == "add":
                value = value + operands[1][index]
            elif self.operation == "multiply":
                value = value * operands[1][index]
            elif self.operation == "affine":
                value = value * operands[1][channel] + operands[2][channel]
            return self.activation.apply(value)

        return [*operands, te.compute(self.shape, element, name="out")]

    def schedule(self, schedule: Any, cpu: Cpu) -> None:
        """Vectors along the innermost axis, rows over threads."""
        out = schedule.get_sblock("out")
        loops = schedule.get_loops(out)
        if len(self.shape) == 5:
            schedule.vectorize(loops[-1])
        else:
            _, inner = schedule.split(loops[-1], [None, cpu.lanes])
            schedule.vectorize(inner)
        parallelize(schedule, loops[:2] if len(loops) > 2 else loops[:1], product(self.shape), cpu)
