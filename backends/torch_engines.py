"""torch as a measured backend, eager or compiled by Inductor, on this machine's CPU or its CUDA device.

Many deploy there. What is timed is the program of `torch.export` in float32, TF32 off, so that answers can be checked.
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
import torch
from torch import nn

from backends.measuring import Artefact, Measurement, measure, relative_error
from backends.operator_worker import Prepared
from backends.torch_operators import TorchOperator
from backends.torch_reference import exported_program, reference_output
from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph

_LOADING_S = 120.0
_COMPILING_S = 480.0
"""Inductor takes about a second for each kernel that it hands to the C++ compiler."""
_CALLS = 64
_SAMPLE_S = 1e-3

Device = Literal["cpu", "cuda"]


class TorchBackend:
    """Networks timed in torch.

    Args:
        compiled: by `torch.compile`, which needs a C++ compiler on a CPU; eager otherwise.
        device: "cpu", or "cuda" where there is such a device; the device is waited for after every call.
        threads: on the CPU.
    """

    def __init__(self, *, compiled: bool = False, device: Device = "cpu", threads: int = 1) -> None:
        self.compiled = compiled
        self.device = device
        self.threads = threads
        self.name = "torch" + ("_cuda" if device == "cuda" else "") + ("_compiled" if compiled else "")

    def supports(self, graph: ModelGraph) -> tuple[str, ...]:
        """Reasons why the network cannot be measured: none but what the machine lacks."""
        reason = lacking(self.device, self.compiled)
        return (reason,) if reason else ()

    def measure(self, module: nn.Module, example_input: torch.Tensor) -> Measurement:
        """Exports the network in evaluation mode, checks its output against torch's eager one on the CPU, and times it.

        Raises:
            InputError: torch cannot export the network, or the machine lacks the device or the compiler.
            TrimtabError: torch cannot compile it, or it fails or answers wrongly.
        """
        if reason := lacking(self.device, self.compiled):
            raise InputError(reason)
        program = exported_program(module, example_input)
        expected = reference_output(module, example_input)
        with tempfile.TemporaryDirectory(prefix="trimtab-torch-") as name:
            path = Path(name) / "model.pt2"
            torch.export.save(program, path)
            example = example_input.detach().cpu().numpy()
            artefacts, limit_s = [Artefact(self.name, path)], _COMPILING_S if self.compiled else _LOADING_S
            return measure(artefacts, example, expected, threads=self.threads, timeout_s=limit_s)[0]


def lacking(device: Device, compiled: bool) -> str:
    """What the machine does not have, "" where it has everything."""
    if device == "cuda" and not torch.cuda.is_available():
        return "torch finds no CUDA device; measure on the CPU, or install torch for CUDA beside its driver"
    if device == "cpu" and compiled:
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            return f"torch.compile needs a C++ compiler, {compiler!r} is not installed; install it or set CXX"
    return ""


def bound_program(
    path: Path, example: npt.NDArray[Any], threads: int, *, device: Device = "cpu", compiled: bool = False
) -> tuple[Callable[[], object], Callable[[], npt.NDArray[Any]]]:
    """An exported program ready to run again and again, its input in place: (run, read the output)."""
    _settle(threads)
    module = torch.export.load(path).module(check_guards=False).to(device)
    call: Callable[..., torch.Tensor] = torch.compile(module, dynamic=False) if compiled else module
    x = torch.from_numpy(example).to(device)

    def run() -> torch.Tensor:
        with torch.inference_mode():
            output = call(x)
        if device == "cuda":
            torch.cuda.synchronize()
        return output

    return run, lambda: run().cpu().numpy()


class TorchEngine:
    """What runs the recipes of `backends.torch_operators` in eager torch (see `backends.operator_worker`).

    Compiled operators have no table: Inductor takes seconds for each, and fuses otherwise in a whole network.

    Args:
        threads: that an operator may use on the CPU.
        device: "cpu" or "cuda".
    """

    def __init__(self, threads: int, device: Device = "cpu") -> None:
        self._device = device
        _settle(threads)

    def prepare(self, recipe: TorchOperator) -> Prepared:
        """Makes the operator ready to run, compared with what the CPU computes: on the CPU only NaN is an error."""
        generator = torch.Generator().manual_seed(0)
        module, inputs = recipe.module(generator), recipe.example_inputs(generator)
        operands = [tensor.to(self._device) for tensor in inputs]
        with torch.inference_mode():
            expected = module(*inputs)
            call = module.to(self._device).forward
            output = call(*operands)
            self._wait()
            start = time.perf_counter()
            call(*operands)
            self._wait()
        calls = max(1, min(_CALLS, int(_SAMPLE_S / max(time.perf_counter() - start, 1e-9))))

        def run() -> None:  # one after the other, as in a network, where nobody waits for the device in between
            with torch.inference_mode():
                for _ in range(calls):
                    call(*operands)
            self._wait()

        structure = hashlib.sha256(recipe.recipe.encode()).hexdigest()
        return Prepared(run, calls, relative_error(output.cpu().numpy(), expected.numpy()), structure)

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()


def _settle(threads: int) -> None:
    """Threads, and float32 that is float32, for this process."""
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
