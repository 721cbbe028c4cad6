"""Compiling networks with TVM, by schedules that need no tuning.

The names are loaded when first used: a process that only runs a compiled network never imports the compiler.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backends.tvm.compiled import CompiledModel, compile_module
    from backends.tvm.library import load_library

__all__ = ["CompiledModel", "compile_module", "load_library"]

_HOME = {"CompiledModel": "compiled", "compile_module": "compiled", "load_library": "library"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
