"""Running a compiled network with TVM's runtime alone; imports nothing of the compiler, to start quickly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm.runtime
import tvm.runtime.vm

FloatArray = npt.NDArray[np.float32]


def load_library(path: Path) -> Callable[[FloatArray], FloatArray]:
    """The network of an exported library.

    A shared library is code: loading it runs it. Only throwaway processes call this (`backends.measuring_worker`, the
    verification's), and only on what this process made or on a file whose digest matched.
    """
    return callable_network(load_machine(path))


def load_machine(path: Path, device: str = "cpu") -> Any:
    """TVM's virtual machine on an exported library, for "cpu" or "cuda"; the warning of `load_library` applies."""
    return tvm.runtime.vm.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.runtime.device(device))


def callable_network(machine: Any) -> Callable[[FloatArray], FloatArray]:
    """The network in a virtual machine, from array to array."""

    def run(x: FloatArray) -> FloatArray:
        output: FloatArray = machine["main"](device_array(x)).numpy()
        return output

    return run


def device_array(x: FloatArray, device: str = "cpu") -> Any:
    """The array as TVM takes it, on "cpu" or "cuda"."""
    return tvm.runtime.tensor(np.ascontiguousarray(x, dtype=np.float32), tvm.runtime.device(device))
