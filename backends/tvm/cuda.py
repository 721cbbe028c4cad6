"""Networks on a CUDA device by TVM out of the box: its importer, its fusion, its default GPU schedules (DLight).

None of this is tuned, and none of it is Trimtab's own: it is what TVM gives its users, not the best that it can.
Networks are measured whole; there is no table of operators for CUDA, and so no latency budget.
"""

import copy
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import tvm
from torch import nn
from tvm import relax
from tvm.relax.backend.cuda import legalize_passes, library_dispatch_passes
from tvm.relax.frontend.torch import from_exported_program

from backends.torch_reference import exported_program
from backends.tvm.tuning_search import first_line
from search_spaces.errors import InputError, TrimtabError

_COMPILER = "TVM_CUDA_COMPILE_MODE"


def lacking() -> str:
    """What this machine does not have, "" where it has everything."""
    if not tvm.cuda(0).exist:
        return (
            "TVM finds no CUDA device; measure on the CPU, or install the device's driver and the CUDA runtime that "
            "TVM's package is built for"
        )
    if shutil.which("nvcc") is None:
        return "TVM compiles for CUDA by nvcc, which is not on PATH; install the CUDA toolkit"
    return ""


def cuda_target(arch: str | None = None) -> Any:
    """TVM's target of an architecture such as "sm_80", whether it is here or not; of this machine's device by default.

    Raises:
        InputError: no architecture is given, and there is no device or compiler.
    """
    if arch is not None:
        return tvm.target.Target({"kind": "cuda", "arch": arch})
    if reason := lacking():
        raise InputError(reason)
    return tvm.target.Target.from_device(tvm.cuda(0))


def schedule_network(module: nn.Module, example_input: torch.Tensor, target: Any) -> Any:
    """The network as an IRModule: batch norms folded, neighbours fused, every loop bound to the device's threads.

    Args:
        module: evaluated in evaluation mode; it stays as it is.
        example_input: [N, ...] float32; the code is for this shape.
        target: see `cuda_target`.

    Raises:
        InputError: torch cannot export the network.
        TrimtabError: TVM cannot import or schedule it.
    """
    module = copy.deepcopy(module)
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.data = tensor.data.contiguous()  # TVM reads memory, not strides
    program = exported_program(module, example_input)
    passes = [
        relax.transform.CanonicalizeBindings(),
        relax.transform.FoldBatchnormToConv2D(),
        relax.transform.FoldConstant(),
        *library_dispatch_passes(target),
        relax.transform.DecomposeOpsForInference(),
        relax.transform.CanonicalizeBindings(),
        *legalize_passes(target),
        relax.transform.DeadCodeElimination(),
    ]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's, about its own tree utilities
            imported = from_exported_program(program, unwrap_unit_return_tuple=True, run_ep_decomposition=True)
        with target:
            return tvm.transform.Sequential(passes)(imported)
    except Exception as error:  # TVM raises many types
        raise TrimtabError(_failure(module, error)) from error


def export_for_cuda(module: nn.Module, example_input: torch.Tensor, path: Path) -> str:
    """Compiles a network for this machine's device into a shared library (`model.so`); returns the architecture.

    Args:
        module, example_input: see `schedule_network`.
        path: of the library.

    Raises:
        InputError: there is no device or compiler, or torch cannot export the network.
        TrimtabError: TVM cannot compile it.
    """
    target = cuda_target()
    scheduled = schedule_network(module, example_input, target)
    try:
        with _compiled_by_nvcc():
            tvm.compile(scheduled, target=target).export_library(str(path))
    except Exception as error:  # TVM raises many types
        raise TrimtabError(_failure(module, error)) from error
    return str(target.attrs["arch"])


@contextmanager
def _compiled_by_nvcc() -> Iterator[None]:
    """TVM's own choice, NVRTC, needs another package and the toolkit as well. What the user chose stands."""
    if _COMPILER in os.environ:
        yield
        return
    os.environ[_COMPILER] = "nvcc"
    try:
        yield
    finally:
        os.environ.pop(_COMPILER, None)


def _failure(module: nn.Module, error: BaseException) -> str:
    name = type(module).__name__
    return f"TVM cannot compile {name} for CUDA: {first_line(error)}; measure with torch or on the CPU"
