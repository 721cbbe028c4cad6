"""The network as a shared library compiled by TVM (`model.so`), batch 1."""

from pathlib import Path

import torch
from torch import nn

from automl.export.torch_export import check_answer
from search_spaces.errors import TrimtabError


def save_library(
    module: nn.Module,
    example_input: torch.Tensor,
    path: Path,
    *,
    threads: int,
    mcpu: str | None = None,
    triple: str = "",
) -> dict[str, str]:
    """Compile the network for one image and write the library; it is code, so nothing but `verify` loads it again.

    Its answer is checked here, unless it is for a processor whose code this machine cannot run.

    Args:
        module: the network.
        example_input: one or more images [N, C, H, W].
        path: of the library.
        threads: that an operator may use.
        mcpu, triple: LLVM's names of the processor and the machine, this one's by default.

    Returns:
        Details for the manifest: the processor it is for, and operators that TVM compiled without a schedule of ours.

    Raises:
        TrimtabError: TVM cannot compile or link the network, or its code computes something else.
    """
    from backends.tvm import compile_module

    try:
        compiled = compile_module(module, example_input[:1], threads=threads, mcpu=mcpu, triple=triple)
        if compiled.cpu.runs_here:
            check_answer("TVM", compiled.run(example_input[:1].numpy()), module, example_input[:1])
        compiled.export(path)
    except TrimtabError:
        raise
    except Exception as error:  # TVM's passes raise whatever their C++ side gives them
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TrimtabError(f"TVM cannot compile the network: {first}") from error
    fallbacks = ", ".join(f"{name} x{count}" for name, count in sorted(compiled.fallbacks.items()))
    return {"target": f"llvm, {compiled.cpu.name}", "unscheduled operators": fallbacks or "none"}
