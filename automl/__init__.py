"""Trimtab: how far each layer of a trained network can be compressed, under a budget, on the hardware you have.

What it exports is loaded when first used, so that `import automl` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from automl.api import RunResult, compress_run, make_env, make_vec_env, search
    from automl.compression import compress
    from automl.config import load_config
    from automl.once_for_all.api import train_supernet
    from automl.sweeps.api import sweep

__all__ = [
    "RunResult",
    "compress",
    "compress_run",
    "load_config",
    "make_env",
    "make_vec_env",
    "search",
    "sweep",
    "train_supernet",
]

_HOME = {
    "RunResult": "automl.api",
    "search": "automl.api",
    "compress_run": "automl.api",
    "make_env": "automl.api",
    "make_vec_env": "automl.api",
    "train_supernet": "automl.once_for_all.api",
    "sweep": "automl.sweeps.api",
    "compress": "automl.compression",
    "load_config": "automl.config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
