"""What torch says a network computes, and the program it exports."""

import copy
import warnings

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from search_spaces.errors import InputError


def reference_output(module: nn.Module, example_input: torch.Tensor) -> npt.NDArray[np.float32]:
    """The network's output in evaluation mode; the module's own mode and statistics stay as they are.

    Raises:
        InputError: the network fails on that input.
    """
    try:
        with torch.no_grad():
            output: npt.NDArray[np.float32] = copy.deepcopy(module).eval()(example_input).cpu().numpy()
    except Exception as error:  # whatever a user's module raises
        raise InputError(f"the network fails on its example input: {root_cause(error)}") from error
    return output


def exported_program(module: nn.Module, example_input: torch.Tensor) -> torch.export.ExportedProgram:
    """The network in evaluation mode as `torch.export` traces it, for inputs of this shape; the module stays as it is.

    Raises:
        InputError: torch cannot export it.
    """
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # about torch's own internals, not about the network
            return torch.export.export(copy.deepcopy(module).eval(), (example_input,))
    except Exception as error:  # torch has no common class for what it cannot export
        raise InputError(f"torch.export cannot trace the network: {root_cause(error)}") from error


def root_cause(error: BaseException) -> str:
    """Class and first line of the error that an exporter's pages of advice began with."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
