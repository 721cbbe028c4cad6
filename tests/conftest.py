"""What several tests share: the optional libraries of networks, the oracles from outside."""

import importlib
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import settings

settings.register_profile("trimtab", deadline=None)  # a busy machine fails no test
settings.load_profile("trimtab")

ORACLES = Path(__file__).resolve().parents[2] / "shared" / "oracles"
_FRAGMENT = torch.library.Library("torchvision", "FRAGMENT")


@pytest.fixture(scope="session")
def vision() -> Callable[[str], ModuleType]:
    """Imports "torchvision.models" or "timm"; the test is skipped where they are not installed."""
    return _import_vision


def _import_vision(name: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(30):
            try:
                return importlib.import_module(name)
            except ModuleNotFoundError as error:
                pytest.skip(f"{error.name} is not installed")
            except RuntimeError as error:
                # a torchvision built for a GPU lacks its own operators beside a torch for the CPU; networks need none
                missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
                if missing is None:
                    raise
                _FRAGMENT.define(f"{missing[1]}(Tensor x) -> Tensor")
    raise AssertionError(f"{name} cannot be imported")


@pytest.fixture(scope="session")
def oracles() -> Path:
    """The folder of figures from outside; the test is skipped where it is absent."""
    if not ORACLES.is_dir():
        pytest.skip(f"no oracles in {ORACLES}")
    return ORACLES
