"""What torch says a network computes."""

import copy

import numpy as np
import numpy.typing as npt
import torch
from torch import nn


def reference_output(module: nn.Module, example_input: torch.Tensor) -> npt.NDArray[np.float32]:
    """The network's output in evaluation mode; the module's own mode and statistics stay as they are."""
    with torch.no_grad():
        output: npt.NDArray[np.float32] = copy.deepcopy(module).eval()(example_input).cpu().numpy()
    return output
