"""From a torch module to machine code."""

import copy
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import tvm
from torch import nn
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program

from backends.tvm.library import FloatArray, callable_network
from backends.tvm.lower import Lowering
from backends.tvm.rules import RULES
from backends.tvm.target import Cpu, cpu_for
from search_spaces.errors import InputError, TrimtabError


class CompiledModel:
    """A network in machine code, for one shape of input.

    Attributes:
        cpu: the processor it is made for.
        input_shape: of the input, batch included.
        operators: calls of Trimtab's kernels, by kind.
        fallbacks: calls of TVM's own code, which is not tuned for anything, by operator name; empty is as it should be.
    """

    def __init__(
        self,
        executable: Any,
        cpu: Cpu,
        input_shape: tuple[int, ...],
        operators: Mapping[str, int],
        fallbacks: Mapping[str, int],
    ) -> None:
        self.cpu = cpu
        self.input_shape = input_shape
        self.operators = dict(operators)
        self.fallbacks = dict(fallbacks)
        self._executable = executable
        self._machine: Any | None = None

    def run(self, x: FloatArray) -> FloatArray:
        """The network's output for an input of the shape it was compiled for; InputError for any other."""
        if x.shape != self.input_shape:
            raise InputError(f"the network is compiled for inputs of shape {self.input_shape}, got {x.shape}")
        if self._machine is None:
            self._machine = relax.VirtualMachine(self._executable, tvm.cpu())
        return callable_network(self._machine)(x)

    def export(self, path: Path) -> None:
        """Writes the shared library (`model.so`)."""
        with _without_scope_warnings():
            self._executable.export_library(str(path))


def compile_module(
    module: nn.Module, example_input: torch.Tensor, *, threads: int = 1, mcpu: str | None = None
) -> CompiledModel:
    """Compiles a network in evaluation mode, without any tuning and always to the same code.

    Args:
        module: the network; a copy is compiled, batch norms folded into the operators before them.
        example_input: [N, ...] float32; the code is for this shape.
        threads: threads an operator may use.
        mcpu: LLVM's name of the processor, this machine's by default.

    Raises:
        InputError: where torch.export cannot trace the module, or TVM cannot read what it traced.
        TrimtabError: where TVM fails to compile it.
    """
    lowered, lowering = lower_module(module, example_input, cpu_for(mcpu, threads))
    try:
        executable = tvm.compile(lowered, target=lowering.cpu.target)
    except Exception as error:  # TVM raises many types
        raise TrimtabError(f"TVM cannot compile the network: {_first_line(error)}") from error
    return CompiledModel(executable, lowering.cpu, tuple(example_input.shape), lowering.operators, lowering.fallbacks)


def lower_module(module: nn.Module, example_input: torch.Tensor, cpu: Cpu) -> tuple[Any, Lowering]:
    """The network as a Relax module of scheduled kernels, and the walk that made it. Raises as `compile_module`."""
    if example_input.dtype != torch.float32:
        raise InputError(f"the example input must be float32, not {example_input.dtype}; convert it")
    evaluated = copy.deepcopy(module).eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's, about its own tree utilities
            program = torch.export.export(evaluated, (example_input,))
            imported = from_exported_program(program, unwrap_unit_return_tuple=True)
    except Exception as error:  # whatever a user's module and two importers raise
        raise InputError(f"the network cannot be exported for TVM: {_first_line(error)}") from error
    if isinstance(imported["main"].ret_ty, relax.TupleType):
        raise InputError("the network must give one tensor, not several; wrap it in a module that chooses one")
    tidy = tvm.transform.Sequential([relax.transform.CanonicalizeBindings(), relax.transform.DeadCodeElimination()])
    lowering = Lowering(tidy(imported), cpu, RULES)
    try:
        return lowering.run(), lowering
    except Exception as error:  # TVM raises many types
        raise TrimtabError(f"TVM cannot schedule the network: {_first_line(error)}") from error


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
