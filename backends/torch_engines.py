"""torch as a measured backend, eager or compiled by Inductor, on this machine's CPU or its CUDA device.

Many deploy there. What is timed is the program of `torch.export` in float32, TF32 off, so that answers can be checked.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
import torch
from torch import nn

from backends.measuring import Artefact, Measurement, measure
from backends.torch_reference import exported_program, reference_output
from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph

_LOADING_S = 120.0
_COMPILING_S = 480.0
"""Inductor takes about a second for each kernel that it hands to the C++ compiler."""


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
        reason = self._lacking()
        return (reason,) if reason else ()

    def measure(self, module: nn.Module, example_input: torch.Tensor) -> Measurement:
        """Exports the network in evaluation mode, checks its output against torch's eager one on the CPU, and times it.

        Raises:
            InputError: torch cannot export the network, or the machine lacks the device or the compiler.
            TrimtabError: torch cannot compile it, or it fails or answers wrongly.
        """
        reason = self._lacking()
        if reason:
            raise InputError(reason)
        program = exported_program(module, example_input)
        expected = reference_output(module, example_input)
        with tempfile.TemporaryDirectory(prefix="trimtab-torch-") as name:
            path = Path(name) / "model.pt2"
            torch.export.save(program, path)
            example = example_input.detach().cpu().numpy()
            artefacts, limit_s = [Artefact(self.name, path)], _COMPILING_S if self.compiled else _LOADING_S
            return measure(artefacts, example, expected, threads=self.threads, timeout_s=limit_s)[0]

    def _lacking(self) -> str:
        """What the machine does not have, "" where it has everything."""
        if self.device == "cuda" and not torch.cuda.is_available():
            return "torch finds no CUDA device; measure on the CPU, or install torch for CUDA beside its driver"
        if self.device == "cpu" and self.compiled:
            compiler = os.environ.get("CXX", "g++")
            if shutil.which(compiler) is None:
                return f"torch.compile needs a C++ compiler, {compiler!r} is not installed; install it or set CXX"
        return ""


def bound_program(
    path: Path, example: npt.NDArray[Any], threads: int, *, device: Device = "cpu", compiled: bool = False
) -> tuple[Callable[[], object], Callable[[], npt.NDArray[Any]]]:
    """An exported program ready to run again and again, its input in place: (run, read the output)."""
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    module = torch.export.load(path).module(check_guards=False).to(device)
    return bound_module(module, torch.from_numpy(example), device=device, compiled=compiled)


def bound_module(
    module: nn.Module, *inputs: torch.Tensor, device: Device = "cpu", compiled: bool = False
) -> tuple[Callable[[], object], Callable[[], npt.NDArray[Any]]]:
    """A module that lies on the device, bound to its inputs: (run, read the output)."""
    call: Callable[..., torch.Tensor] = torch.compile(module, dynamic=False) if compiled else module
    operands = [tensor.to(device) for tensor in inputs]

    def run() -> torch.Tensor:
        with torch.inference_mode():
            output = call(*operands)
        if device == "cuda":
            torch.cuda.synchronize()
        return output

    return run, lambda: run().cpu().numpy()
