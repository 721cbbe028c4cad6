"""The network as a `torch.export` program (`model.pt2`): runs without the Python code that built it."""

import warnings
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from search_spaces.errors import TrimtabError

Batch = Literal["dynamic"] | int
"""Images that an artefact takes at a time."""


def capture_program(module: nn.Module, example_input: torch.Tensor) -> tuple[ExportedProgram, Batch]:
    """Trace the network in eval mode, for any batch size where it allows that.

    Args:
        module: the network; left as it is, training mode included.
        example_input: one or more images [N, C, H, W].

    Returns:
        The program, and "dynamic" or the one batch size (1) it takes.

    Raises:
        TrimtabError: torch cannot trace the network at all.
    """
    modes = {child: child.training for child in module.modules()}
    one = example_input[:1]
    module.eval()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # about torch's own internals, not about the network
            try:  # two images, because torch takes a dimension of size 1 for a constant
                shapes = ({0: Dim("batch", min=1)},)
                program = torch.export.export(module, (torch.cat([one, one]),), dynamic_shapes=shapes)
                batch: Batch = "dynamic"
            except Exception:  # torch has no common class for "this network fixes its batch"
                program = torch.export.export(module, (one,))
                batch = 1
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TrimtabError(f"torch.export cannot trace the network: {reason}") from error
    finally:
        for child, training in modes.items():
            child.training = training
    _forget_source_files(program)
    return program, batch


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write the program; it is code, so nothing but `verify` loads it again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, path)


def _forget_source_files(program: ExportedProgram) -> None:
    """Drop the stack traces, which name files of this machine and would end up in both exported formats."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
