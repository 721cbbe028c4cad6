"""From a torch module to machine code."""

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tvm
from torch import nn
from tvm import relax

from backends.integers import IntegerNetwork
from backends.tvm.code import machine_code, structure_of
from backends.tvm.emit import emit
from backends.tvm.library import FloatArray, callable_network
from backends.tvm.linking import linker
from backends.tvm.lowering.grids import WithIntegers
from backends.tvm.lowering.plan import Call, plan
from backends.tvm.lowering.rest import lower_rest
from backends.tvm.lowering.rules import RULES
from backends.tvm.target import Cpu, cpu_for
from search_spaces.capture import capture_for_compiling
from search_spaces.errors import InputError, TrimtabError
from search_spaces.graph import ModelGraph

_RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}


@dataclass(frozen=True)
class LoweredModel:
    """A network as a Relax module of scheduled kernels.

    Attributes:
        module: its only entry is `main`.
        cpu: the processor it is made for.
        recipes: of the kernels called, in order.
        structures: structural hash of each kernel's function, by recipe.
        operators: calls of kernels, by kind.
        fallbacks: operators without a rule of Trimtab's, by kind; MetaSchedule tunes those that this machine can run.
    """

    module: tvm.IRModule
    cpu: Cpu
    recipes: tuple[str, ...]
    structures: Mapping[str, str]
    operators: Mapping[str, int]
    fallbacks: Mapping[str, int]


class CompiledModel:
    """A network in machine code, for one shape of input.

    Attributes:
        lowered: what it was made of.
        input_shape: of the input, batch included.
    """

    def __init__(self, executable: Any, lowered: LoweredModel, input_shape: tuple[int, ...]) -> None:
        self.lowered = lowered
        self.input_shape = input_shape
        self._executable = executable
        self._machine: Any | None = None

    @property
    def cpu(self) -> Cpu:
        """The processor it is made for."""
        return self.lowered.cpu

    @property
    def operators(self) -> Mapping[str, int]:
        """Calls of kernels, by kind."""
        return self.lowered.operators

    @property
    def fallbacks(self) -> Mapping[str, int]:
        """Operators without a rule of Trimtab's, by kind; empty is as it should be."""
        return self.lowered.fallbacks

    def run(self, x: FloatArray) -> FloatArray:
        """The network's output for an input of the shape it was compiled for; InputError for any other, and where this
        machine lacks the processor's instructions."""
        if not self.cpu.runs_here:
            raise InputError(f"this machine cannot run code for {self.cpu.name}; export the network")
        if x.shape != self.input_shape:
            raise InputError(f"the network is compiled for inputs of shape {self.input_shape}, got {x.shape}")
        if self._machine is None:
            self._machine = relax.VirtualMachine(self._executable, tvm.cpu())
        return callable_network(self._machine)(x)

    def export(self, path: Path) -> None:
        """Writes the shared library (`model.so`).

        Raises:
            InputError: it is for another architecture, for which no compiler links (see `linking.cross_compiler`).
            TrimtabError: that compiler fails.
        """
        link = linker(self.cpu)
        with _without_scope_warnings():
            self._executable.export_library(str(path), fcompile=link)


def compile_module(
    module: nn.Module,
    example_input: torch.Tensor,
    *,
    threads: int = 1,
    mcpu: str | None = None,
    triple: str = "",
    integers: IntegerNetwork | None = None,
) -> CompiledModel:
    """Compiles a network in evaluation mode, always to the same code.

    Args:
        module: the network; a copy is compiled, batch norms folded into the operators before them.
        example_input: [N, ...] float32; the code is for this shape.
        threads: threads an operator may use.
        mcpu, triple: LLVM's names of the processor and the machine, this one's by default (see `cpu_for`).
        integers: of the layers that compute in 8-bit integers; the module has no quantisers of what they read.

    Raises:
        InputError: where torch cannot export the module, it has an operator that cannot be compiled, or LLVM does not
            know the processor.
        TrimtabError: where TVM fails to compile it.
    """
    lowered = lower_module(module, example_input, cpu_for(mcpu, threads, triple), integers)
    try:
        executable = machine_code(lowered.module, lowered.cpu)
    except Exception as error:  # TVM raises many types
        raise TrimtabError(f"TVM cannot compile the network: {_first_line(error)}") from error
    return CompiledModel(executable, lowered, tuple(example_input.shape))


def lower_module(
    module: nn.Module, example_input: torch.Tensor, cpu: Cpu, integers: IntegerNetwork | None = None
) -> LoweredModel:
    """The network as a Relax module of scheduled kernels. Raises as `compile_module`."""
    if example_input.dtype != torch.float32:
        raise InputError(f"the example input must be float32, not {example_input.dtype}; convert it")
    graph, tensors = capture_for_compiling(module, example_input)
    if reasons := unsupported(graph):
        raise InputError(f"the network cannot be compiled by TVM: {reasons[0]}")
    try:
        integers = integers or IntegerNetwork({}, {})
        planner, given, output = plan(graph, cpu, RULES, lower_rest, len(example_input), integers.formats)
        code, functions = emit(planner, given, output, WithIntegers(tensors, integers.layers), cpu)
    except TrimtabError:
        raise
    except Exception as error:  # TVM raises many types
        raise TrimtabError(f"TVM cannot schedule the network: {_first_line(error)}") from error
    called = [step.kernel for step in planner.steps if isinstance(step, Call)]
    return LoweredModel(
        code,
        cpu,
        tuple(kernel.recipe for kernel in called),
        {kernel.recipe: structure_of(code[name]) for kernel, name in functions.items()},
        Counter(kernel.kind for kernel in called),
        Counter(planner.fallbacks),
    )


def unsupported(graph: ModelGraph) -> tuple[str, ...]:
    """Reasons why a network cannot be compiled; empty where none is known from its graph."""
    return tuple(
        f"operator {operator.name!r} is recurrent ({operator.kind}): this release of TVM computes it wrongly"
        for operator in graph.full_operators
        if operator.kind in _RECURRENT
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def _without_scope_warnings() -> Iterator[None]:
    """Keeps back the line that TVM's C++ log writes for every memory scope it saves; it has no filter of its own."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            log.seek(0)
            for line in log:
                if b"Scope Saving" not in line:
                    os.write(2, line)
