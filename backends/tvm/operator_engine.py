"""Single kernels as they run inside a network: called by Relax's virtual machine, weights not fresh in the cache."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from backends.measuring import relative_error
from backends.operator_worker import Prepared
from backends.tvm.code import machine_code, structure_of
from backends.tvm.kernels.base import Kernel
from backends.tvm.stock import StockOperator, inline_into
from backends.tvm.target import Cpu, cpu_for

Array = npt.NDArray[Any]

_CALLS, _FEW_CALLS = 16, 4
"""Calls in a row, and where one call is long. Entering the virtual machine costs 0.7 us beside 0.25 us for each call; a
network enters it once, too, and so each operator bears its share, as it would in a network of so many."""
_LONG_WORK = 1e7
"""Multiply-adds that take some 100 us."""
PLACES = 4
"""Memory that an operator is timed in, one place after the other."""
_COLD_BYTES = 1 << 22
_MOST_BYTES = 1 << 28


class TvmEngine:
    """Kernels compiled by TVM for this machine, or for another processor of its kind.

    Args:
        threads: threads that a kernel may use.
        mcpu: LLVM's name of the processor, this machine's by default.
    """

    def __init__(self, threads: int = 1, mcpu: str | None = None) -> None:
        self._cpu = cpu_for(mcpu, threads)

    def prepare(self, recipe: Kernel | StockOperator) -> Prepared:
        """Compiles the kernel into a function that calls it several times in a row, and checks what the last one gives.

        Raises as `in_a_row`.
        """
        row = in_a_row(recipe, self._cpu)
        first, *others = (_bound(row.executable, row.source) for _ in range(PLACES))
        return Prepared(first, row.calls, row.error(first().numpy()), row.structure, tuple(others))


@dataclass(frozen=True)
class InARow:
    """An operator in machine code that calls it several times in a row, as its function `main`.

    Attributes:
        executable: TVM's.
        calls: of the operator in one of `main`.
        source: what `main` is given.
        expected: what torch computes.
        structure: hash of the operator's code.
    """

    executable: Any
    calls: int
    source: Array
    expected: Array
    structure: str

    def error(self, output: Array) -> float:
        """max|a-b| / max|a| of what `main` gives."""
        return relative_error(output, self.expected)


def in_a_row(recipe: Kernel | StockOperator, cpu: Cpu) -> InARow:
    """Compiles an operator to be timed. One of TVM's own is tuned first where it is new.

    Raises whatever TVM raises where it cannot compile it.
    """
    operands = recipe.example_operands(cpu, np.random.default_rng(0))
    code = recipe.build_module(cpu) if isinstance(recipe, StockOperator) else recipe.build(cpu)
    module, calls = _calls(recipe, code, operands, cpu)
    executable = machine_code(module, cpu)
    return InARow(executable, calls, operands[0], recipe.reference(operands), structure_of(code))


def _calls(kernel: Kernel | StockOperator, code: Any, operands: Sequence[Array], cpu: Cpu) -> tuple[Any, int]:
    """A module whose `main` takes the first operand and calls the kernel, the last time with just these operands; and
    the number of calls. The others are constants, as in a network: parameters are checked at each entry."""
    source = relax.Var("source", relax.TensorType(operands[0].shape, str(operands[0].dtype)))
    arguments = [source, *map(relax.const, operands[1:])]
    declared = [] if isinstance(kernel, StockOperator) else kernel.declare(cpu)[:-1]
    names = [operand.op.name for operand in declared]
    turns, most = [arguments], _CALLS if kernel.work < _LONG_WORK else _FEW_CALLS
    if "weight" in names:
        at = names.index("weight")
        copies = copies_of_weight(operands[at].nbytes, most)
        others = [relax.const(_another(operands[at], copy)) for copy in range(1, copies)]  # equal ones
        turns += [[*arguments[:at], other, *arguments[at + 1 :]] for other in others]  # would be stored once
    calls = most // len(turns) * len(turns)
    builder = relax.BlockBuilder()
    name = builder.add_func(code, kernel.kind) if isinstance(kernel, Kernel) else None
    dtype = kernel.output_dtype if isinstance(kernel, Kernel) else "float32"
    output = relax.TensorType(kernel.output_shape, dtype)
    # Nothing uses what the first calls give. They run all the same: no pass of TVM's build removes a call.
    with builder.function("main", [source]):
        with builder.dataflow():
            given = [
                inline_into(builder, code, turns[call % len(turns)])
                if name is None
                else builder.emit(relax.call_tir(name, turns[call % len(turns)], output))
                for call in reversed(range(calls))
            ]
            last = builder.emit_output(given[-1])
        builder.emit_func_output(last)
    return builder.get(), calls


def _another(weight: Array, copy: int) -> Array:
    """A weight of about the same size that equals none of its other copies."""
    return weight ^ np.int8(copy) if weight.dtype == np.int8 else weight * np.float32(1 + copy / 64)


def _bound(executable: Any, operand: Array) -> Callable[[], Any]:
    """The function `main` on memory of its own: a virtual machine more costs less than a millisecond."""
    main, source = relax.VirtualMachine(executable, tvm.cpu())["main"], tvm.runtime.tensor(operand, tvm.cpu())
    return lambda: main(source)


def copies_of_weight(size: int, most: int) -> int:
    """Copies of a weight of so many bytes that take turns, at most so many.

    A network comes back to a weight after all its others. So there are copies enough to fill several times the cache
    that a core has to itself, and never few of a large weight, whose network is several times its size. The sum of the
    operators over the network end to end, with one copy of each weight, with this many, and with 64 MiB of copies:
    ResNet-20 0.987, 0.990, 0.989 (pruned 0.994, 0.998); MobileNetV2 0.988, 0.998, 1.029 (pruned 0.989, 1.001, 1.016);
    VGG-16, whose weights no cache holds, 0.66, 0.72, 0.91.

    >>> copies_of_weight(9 << 10, 16), copies_of_weight(600 << 10, 16), copies_of_weight(9 << 20, 16)
    (16, 7, 4)
    """
    filling = min(most, max(_FEW_CALLS, -(-_COLD_BYTES // size)))
    return max(1, min(filling, _MOST_BYTES // size))
