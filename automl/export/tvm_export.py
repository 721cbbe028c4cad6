"""The network as a shared library compiled by TVM (`model.so`), batch 1."""

from pathlib import Path

import torch
from torch import nn

from automl.export.torch_export import check_answer
from search_spaces.errors import TrimtabError


def save_library(module: nn.Module, example_input: torch.Tensor, path: Path, *, threads: int) -> dict[str, str]:
    """Compile the network for one image and write the library; it is code, so nothing but `verify` loads it again.

    Returns:
        Details for the manifest: the processor it is for, and operators that TVM compiled without a schedule of ours.

    Raises:
        TrimtabError: TVM cannot compile the network, or its code computes something else.
    """
    from backends.tvm import compile_module

    try:
        compiled = compile_module(module, example_input[:1], threads=threads)
        check_answer("TVM", compiled.run(example_input[:1].numpy()), module, example_input[:1])
        compiled.export(path)
    except TrimtabError:
        raise
    except Exception as error:  # TVM's passes raise whatever their C++ side gives them
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TrimtabError(f"TVM cannot compile the network: {first}") from error
    fallbacks = ", ".join(f"{name} x{count}" for name, count in sorted(compiled.fallbacks.items()))
    return {"target": f"llvm, {compiled.cpu.mcpu}", "unscheduled operators": fallbacks or "none"}
