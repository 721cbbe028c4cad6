"""A network as a file that an engine runs and `backends.measuring` times."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from automl.compression.treatments import Compressed
from automl.engines import ENGINES
from automl.errors import InputError
from automl.export.agreement import check_answer, rounding_step
from automl.export.quantised_onnx import save_network
from automl.export.torch_export import capture_program
from automl.export.tvm_export import compile_network
from backends import torch_engines
from backends.measuring import Artefact
from backends.remote.device import RemoteDevice
from backends.torch_reference import reference_output


@dataclass(frozen=True)
class Made:
    """A network as a file.

    Attributes:
        artefact: the file, and what runs it.
        error: how far the output of TVM's machine code is from torch's (see `automl.export.agreement`); None where it
            does not run here.
        recipes: the operators that TVM's code calls, as often as it does.
        structures: hash of each operator's code, by recipe.
        expected, step: what TVM's code must compute on another device, for `automl.export.agreement.compare`.
    """

    artefact: Artefact
    error: float | None = None
    recipes: tuple[str, ...] = ()
    structures: Mapping[str, str] = field(default_factory=dict)
    expected: npt.NDArray[Any] | None = None
    step: float = 0.0


def make_artefact(
    engine: str,
    network: Compressed | nn.Module,
    example: torch.Tensor,
    folder: Path,
    name: str,
    threads: int,
    device: RemoteDevice | None = None,
) -> Made:
    """Write the network for an engine.

    Args:
        engine: one of `automl.engines.ENGINES`.
        network: in evaluation mode. TVM and ONNX Runtime run one that is quantised on integers.
        example: [1, ...] its input.
        folder, name: where the file goes, its suffix left out.
        threads: that TVM's code is for.
        device: that it is for; this machine by default.

    Raises:
        TrimtabError: the network cannot be written for the engine, or the code computes something else.
    """
    path = folder / f"{name}{ENGINES[engine].suffix}"
    module = network.module if isinstance(network, Compressed) else network
    if engine == "tvm":
        return _machine_code(network, example, path, threads, device)
    if engine == "tvm_cuda":
        from backends.tvm.cuda import export_for_cuda

        export_for_cuda(module, example, path)
        return Made(Artefact(engine, path))
    program, batch = capture_program(module, example)
    if engine == "onnxruntime":
        save_network(network, program, path, example, batch)
    else:
        torch.export.save(program, path)
    return Made(Artefact(engine, path))


def require_engine(engine: str) -> None:
    """InputError where this machine lacks what the engine runs on, before anything is searched for it."""
    match engine:
        case "tvm_cuda":
            from backends.tvm import cuda

            reason = cuda.lacking()
        case "torch_compiled":
            reason = torch_engines.lacking("cpu", compiled=True)
        case "torch_cuda" | "torch_cuda_compiled":
            reason = torch_engines.lacking("cuda", compiled=False)
        case _:
            reason = ""
    if reason:
        raise InputError(f"measure.backend {engine!r}: {reason}")


def _machine_code(
    network: Compressed | nn.Module, example: torch.Tensor, path: Path, threads: int, device: RemoteDevice | None
) -> Made:
    module = network.module if isinstance(network, Compressed) else network
    mcpu, triple = (None, "") if device is None else (device.mcpu, device.triple)
    compiled = compile_network(network, example, threads=threads, mcpu=mcpu, triple=triple)
    error, step = None, 0.0
    if compiled.cpu.runs_here:
        error = check_answer("TVM", compiled.run, module, example, batch=1)
        expected = compiled.run(example.numpy())
    else:
        expected, step = reference_output(module, example), rounding_step(module)
    compiled.export(path)
    return Made(Artefact("tvm", path), error, compiled.lowered.recipes, compiled.lowered.structures, expected, step)
