"""The network as a shared library compiled by TVM (`model.so`), batch 1."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from automl.compression.treatments import Compressed
from automl.export.agreement import check_answer
from automl.export.integers import integer_network
from search_spaces.errors import TrimtabError

if TYPE_CHECKING:
    from backends.tvm.compiled import CompiledModel


def compile_network(
    network: Compressed | nn.Module,
    example: torch.Tensor,
    *,
    threads: int,
    mcpu: str | None = None,
    triple: str = "",
) -> "CompiledModel":
    """The network's machine code, where it can be in 8-bit integers; of a module alone none are known.

    Raises:
        TrimtabError: see `backends.tvm.compile_module`.
    """
    from backends.tvm import compile_module

    if not isinstance(network, Compressed):
        return compile_module(network, example, threads=threads, mcpu=mcpu, triple=triple)
    module, integers, _ = integer_network(network)
    return compile_module(module, example, threads=threads, mcpu=mcpu, triple=triple, integers=integers)


def save_library(
    network: Compressed | nn.Module,
    images: torch.Tensor,
    path: Path,
    *,
    threads: int,
    mcpu: str | None = None,
    triple: str = "",
) -> dict[str, str]:
    """Compile the network for one image and write the library; it is code, so nothing but `verify` loads it again.

    Its answers are checked here, unless it is for a processor whose code this machine cannot run.

    Args:
        network: in evaluation mode; see `compile_network`.
        images: [N, C, H, W] on which its answers are compared with torch's.
        path: of the library.
        threads: that an operator may use.
        mcpu, triple: LLVM's names of the processor and the machine, this one's by default.

    Returns:
        Details for the manifest: the processor it is for, and operators that TVM compiled without a schedule of ours.

    Raises:
        TrimtabError: TVM cannot compile or link the network, or its code computes something else.
    """
    try:
        compiled = compile_network(network, images[:1], threads=threads, mcpu=mcpu, triple=triple)
        if compiled.cpu.runs_here:
            module = network.module if isinstance(network, Compressed) else network
            check_answer("TVM", compiled.run, module, images, batch=1)
        compiled.export(path)
    except TrimtabError:
        raise
    except Exception as error:  # TVM's passes raise whatever their C++ side gives them
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TrimtabError(f"TVM cannot compile the network: {first}") from error
    fallbacks = ", ".join(f"{name} x{count}" for name, count in sorted(compiled.fallbacks.items()))
    return {"target": f"llvm, {compiled.cpu.name}", "unscheduled operators": fallbacks or "none"}
