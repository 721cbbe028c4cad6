"""What several conformance kits ask."""

import random
from typing import Any

import numpy as np
import torch


def require(condition: bool, otherwise: str) -> None:
    """AssertionError with that message where the condition does not hold; it works under `python -O`, too."""
    if not condition:
        raise AssertionError(otherwise)


def global_state() -> tuple[Any, ...]:
    """Python's, numpy's and torch's generators and torch's number of threads: nobody else's to change."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 (that it stays untouched is the point)
    return (repr(numpy_state), random.getstate(), torch.get_rng_state().tolist(), torch.get_num_threads())
