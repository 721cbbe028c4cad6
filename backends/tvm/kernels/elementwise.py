"""Operators on each element by itself: affine maps of channels, sums and products of two values, activations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tvm import te

from backends.tvm.kernels.base import Array, Kernel, parallelize
from backends.tvm.kernels.epilogue import IDENTITY, Activation
from backends.tvm.target import Cpu

_BINARY: Mapping[str, tuple[Callable[[Any, Any], Any], Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "add": (lambda a, b: a + b, torch.add),
    "subtract": (lambda a, b: a - b, torch.sub),
    "multiply": (lambda a, b: a * b, torch.mul),
    "divide": (lambda a, b: a / b, torch.div),
    "maximum": (te.max, torch.maximum),
    "minimum": (te.min, torch.minimum),
}
"""Of each operation the expression, and torch's function."""


@dataclass(frozen=True, slots=True)
class Elementwise(Kernel):
    """Over a buffer of any shape.

    Operands: source, and by the operation other, or scale and shift [blocks, lanes] ([size] for a matrix).

    Attributes:
        shape: of source and output.
        operation: "copy" (source), "affine" (source * scale + shift), or one of `BINARY_OPERATIONS`.
        activation: applied last.
        other: shape of the second operand of a binary operation, broadcast as torch does it: [N, blocks, 1, 1, lanes]
            for one value a channel, [blocks, H, W, lanes] for one feature map for the whole batch; None for the
            source's own shape.

    Raises:
        ValueError: for an operation that is not known.
    """

    kind: ClassVar[str] = "elementwise"

    shape: tuple[int, ...]
    operation: str
    activation: Activation = IDENTITY
    other: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.operation not in ("copy", "affine", *_BINARY):
            raise ValueError(
                f"an elementwise operation is one of copy, affine, {', '.join(_BINARY)}, not {self.operation!r}"
            )

    @property
    def output_shape(self) -> tuple[int, ...]:
        """That of the source."""
        return self.shape

    def declare(self, cpu: Cpu) -> list[Any]:
        """One expression."""
        source = te.placeholder(self.shape, name="source")
        if self.operation == "copy":
            return [source, te.compute(self.shape, lambda *index: self.activation.apply(source[index]), name="out")]
        if self.operation == "affine":
            channels = (self.shape[1], *self.shape[4:])
            scale, shift = te.placeholder(channels, name="scale"), te.placeholder(channels, name="shift")

            def mapped(*index: Any) -> Any:
                channel = (index[1], *index[4:])
                return self.activation.apply(source[index] * scale[channel] + shift[channel])

            return [source, scale, shift, te.compute(self.shape, mapped, name="out")]
        shape = self.other or self.shape
        other, combine = te.placeholder(shape, name="other"), _BINARY[self.operation][0]

        def combined(*index: Any) -> Any:
            aligned = index[len(index) - len(shape) :]
            position = tuple(0 if extent == 1 else i for i, extent in zip(aligned, shape, strict=True))
            return self.activation.apply(combine(source[index], other[position]))

        return [source, other, te.compute(self.shape, combined, name="out")]

    def schedule(self, schedule: Any, cpu: Cpu) -> None:
        """Vectors along the innermost axis, rows over threads."""
        out = schedule.get_sblock("out")
        loops = schedule.get_loops(out)
        if len(self.shape) == 5:
            schedule.vectorize(loops[-1])
        else:
            _, inner = schedule.split(loops[-1], [None, cpu.lanes])
            schedule.vectorize(inner)
        parallelize(schedule, loops[:3] if len(loops) > 3 else loops[:1], self.work, cpu)

    def reference(self, operands: Sequence[Array]) -> Array:
        """torch's operator, then torch's activation."""
        value, *others = (torch.from_numpy(operand) for operand in operands)
        if self.operation == "affine":
            scale, shift = others if len(self.shape) == 2 else (one[:, None, None] for one in others)
            value = value * scale + shift
        elif self.operation != "copy":
            value = _BINARY[self.operation][1](value, others[0])
        return self.activation.reference(value).numpy()


BINARY_OPERATIONS = tuple(_BINARY)
