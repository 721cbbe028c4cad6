"""One connection to one device, for a process that may hang in our place: TVM's RPC waits for ever.

A session begins with a small program whose result is known; it is also how the device's pace is read. A device that
computes it wrongly, or whose runtime is another TVM's, is fit for nothing.
"""

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import tvm
import tvm_ffi
from tvm import relax, rpc
from tvm.script import tirx as T

from backends.remote.device import Place
from backends.tvm.linking import linker
from backends.tvm.target import Cpu

Array = npt.NDArray[Any]

_STEPS, _SEED = 1 << 14, 88172645463325252
_PROBE_SAMPLES = 3
_RUNTIME = "vm.builtin."
_OF_PYTHON = {"vm.builtin.debug_print"}
"""Registered by TVM's Python package, which a device need not have."""


class UnfitError(Exception):
    """Nothing can be measured on the device, whatever it is asked."""


@dataclass(frozen=True)
class Bound:
    """A library's function `main` on the device, with an input in memory there.

    Attributes:
        run: gives the output.
        time: given calls a sample and samples, gives the seconds of a call in each sample; one call goes before them.
    """

    run: Callable[[], Array]
    time: Callable[[int, int], list[float]]


class Session:
    """A device that has been handed out, until it is closed; a context manager.

    Args:
        place: the device.
        known: names of devices whose runtime is known to be ours; this one is added.
        probe: library of `write_probe`.
        threads: that code may use there.
        lasting_s: after which the device ends the session by itself, should nobody be here any more.

    Raises:
        UnfitError: its runtime is another one, or it computes wrong numbers.
        Exception: whatever TVM raises where the connection breaks.
    """

    def __init__(self, place: Place, known: set[str], probe: Path, threads: int, lasting_s: float) -> None:
        try:
            seconds = math.ceil(lasting_s)  # the server in C++ takes whole numbers alone
            self._remote = rpc.connect(place.host, place.port, place.match, session_timeout=seconds)
        except Exception as error:
            if "protocol" in str(error):
                raise UnfitError(_other_version("speaks another protocol")) from None
            raise
        if place.name not in known:
            self._check_runtime()
            known.add(place.name)
        if threads > 1:  # a single one runs where the device's system puts it
            self._remote.get_function("runtime.config_threadpool")(1, threads)
        self._device = self._remote.cpu()
        self._modules: dict[Path, Any] = {}
        self._state = tvm.runtime.tensor(np.array([_SEED], np.uint64), self._device)
        probing = self._uploaded(probe)
        probing["probe"](self._state)
        if (found := int(self._state.numpy()[0])) != _probed(_SEED):
            raise UnfitError(f"it computes wrong numbers: {found} instead of {_probed(_SEED)}")
        self._probe = probing.time_evaluator("probe", self._device, number=1, repeat=_PROBE_SAMPLES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hands the device back. Whoever still holds something of the session keeps it open."""
        self.__dict__.clear()
        gc.collect()

    def bind(self, library: Path, example: Array) -> Bound:
        """Loads a library, uploaded where it is new, and gives its `main` that input."""
        machine = relax.VirtualMachine(self._uploaded(library), self._device)
        source = tvm.runtime.tensor(np.ascontiguousarray(example), self._device)
        machine.save_function("main", "timed", source, include_return=False)

        def run() -> Array:
            machine.set_input("main", source)
            machine.invoke_stateful("main")
            output: Array = machine.get_outputs("main").numpy()
            return output

        def time(number: int, repeat: int) -> list[float]:
            return list(machine.time_evaluator("timed", device, number=number, repeat=repeat)().results)

        device = self._device
        return Bound(run, time)

    def pace(self) -> float:
        """Seconds of the small program, right now."""
        return float(np.median(self._probe(self._state).results))

    def _uploaded(self, library: Path) -> Any:
        if library not in self._modules:
            name = f"{len(self._modules)}{library.suffix}"  # writing over a library that is loaded crashes the device
            self._remote.upload(str(library), name)
            self._modules[library] = self._remote.load_module(name)
        return self._modules[library]

    def _check_runtime(self) -> None:
        """Raises UnfitError where the device lacks a function that this TVM's runtime has."""
        ours = {name for name in tvm_ffi.registry.list_global_func_names() if name.startswith(_RUNTIME)} - _OF_PYTHON
        lacking = sorted(name for name in ours if not self._has(name))
        if lacking:
            more = f" and {len(lacking) - 1} more functions" if len(lacking) > 1 else ""
            raise UnfitError(_other_version(f"has no {lacking[0]}{more}"))

    def _has(self, name: str) -> bool:
        try:
            self._remote.get_function(name)
        except AttributeError:
            return False
        return True


def write_probe(path: Path, cpu: Cpu) -> None:
    """Writes the library of the small program: steps of Marsaglia's xorshift (2003), each waiting for the one before.

    Raises:
        InputError: nothing here links for that machine.
    """

    @T.prim_func  # type: ignore[untyped-decorator]
    def probe(state: T.Buffer((1,), "uint64")) -> None:  # type: ignore[valid-type]
        T.func_attr({"global_symbol": "probe"})
        for _ in range(_STEPS):
            state[0] = T.bitwise_xor(state[0], T.shift_left(state[0], T.uint64(13)))
            state[0] = T.bitwise_xor(state[0], T.shift_right(state[0], T.uint64(7)))
            state[0] = T.bitwise_xor(state[0], T.shift_left(state[0], T.uint64(17)))

    tvm.compile(tvm.IRModule({"probe": probe}), target=cpu.target).export_library(str(path), fcompile=linker(cpu))


def _probed(state: int) -> int:
    """What the small program makes of a state."""
    for _ in range(_STEPS):
        state ^= state << 13 & (1 << 64) - 1
        state ^= state >> 7
        state ^= state << 17 & (1 << 64) - 1
    return state


def _other_version(difference: str) -> str:
    ours = version("apache-tvm")
    return f"it runs another TVM than {ours} here (it {difference}); install apache-tvm=={ours} there"
