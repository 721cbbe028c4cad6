"""What several conformance kits ask."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from search_spaces.errors import InputError


def require(condition: bool, otherwise: str) -> None:
    """AssertionError with that message where the condition does not hold; it works under `python -O`, too."""
    if not condition:
        raise AssertionError(otherwise)


def refused(call: Callable[..., object], *arguments: object, what: str = "the call") -> None:
    """AssertionError where the call does not raise an InputError of one line; `what` says which call it is."""
    try:
        answer = call(*arguments)
    except InputError as error:
        require("\n" not in str(error), f"an error message is one line: {error}")
        return
    raise AssertionError(f"{what} was not refused, answered {answer!r}")


def global_state() -> tuple[Any, ...]:
    """Python's, numpy's and torch's generators and torch's number of threads: nobody else's to change."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 (that it stays untouched is the point)
    return (repr(numpy_state), random.getstate(), torch.get_rng_state().tolist(), torch.get_num_threads())
