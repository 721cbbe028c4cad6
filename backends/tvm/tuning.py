"""Code for what no rule of Trimtab's covers: TVM's own functions, their loops tuned by MetaSchedule on this machine.

Tuning takes seconds a function, so what it finds is kept in the cache for good and looked up before anything else: a
function is tuned once a device and has the same code ever after. The search runs in a child process, so that a
compiler that crashes or hangs costs one try.
"""

import copy
import hashlib
import importlib.metadata
import json
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy.typing as npt
import torch
import tvm
import tvm.s_tir
import tvm_ffi
from torch import nn
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program
from tvm.tirx import PrimFunc

from backends.latency_entries import DeviceKey
from backends.lease import cache_root
from backends.measuring import TOLERANCE, cpu_name, relative_error
from backends.tvm.library import FloatArray, callable_network
from backends.tvm.target import Cpu, cpu_for
from backends.tvm.tuning_records import TuningRecord, TuningRecords
from backends.tvm.tuning_search import Found, first_line
from backends.tvm.tuning_worker import TuningFailure, TuningProcess
from search_spaces.errors import TrimtabError

Array = npt.NDArray[Any]

TRIALS = 64
"""Schedules sampled a function; with fewer than 32 the luck of the draw shows in the latency."""

TUNING_TIMEOUT_S = 600.0
"""After which the tuning of a function is given up; it takes a quarter of a second a trial, more where code is slow."""

Example = Callable[[], tuple[Sequence[Array], Array]]
"""Operands of a program, and what it must give."""

_TRIES = 2
_REMEDY = "replace it in the network or use another backend"
_SCHEDULED = "tirx.is_scheduled"


@dataclass(frozen=True)
class TunedModule:
    """A module whose functions are all scheduled.

    Attributes:
        module: its Relax function "main" calls nothing but scheduled functions.
        records: by function name, what tuning found; from this call or an earlier one.
        tuned: names of the functions that were tuned now.
    """

    module: Any
    records: Mapping[str, TuningRecord]
    tuned: tuple[str, ...]


def records_for(cpu: Cpu) -> TuningRecords:
    """The tuning records of this machine for that target, those threads and this TVM."""
    version = f"apache-tvm {importlib.metadata.version('apache-tvm')}"
    device = DeviceKey("metaschedule", cpu_name(), cpu.mcpu, cpu.threads, version, rules="")
    return TuningRecords(cache_root() / "tvm" / "tuning" / f"{device.digest}.records")


def tuned_functions(
    module: Any,
    cpu: Cpu,
    *,
    name: str,
    example: Example | None = None,
    trials: int = TRIALS,
    seed: int = 0,
    timeout_s: float = TUNING_TIMEOUT_S,
) -> TunedModule:
    """Turns a Relax program into calls of functions that MetaSchedule has tuned, tuning those it meets first.

    It computes for as long as that takes; nobody should measure meanwhile (see `backends.lease`).

    Args:
        module: IRModule with a Relax function "main", of static shapes.
        cpu: what it is compiled for; tuning happens on this machine.
        name: of the operator or network, for messages.
        example: what the program must compute; asked for where this code has not been checked yet.
        trials: schedules sampled a function; records of fewer are not taken.
        seed: of the samples.
        timeout_s: after which the tuning of one function is given up.

    Raises:
        TrimtabError: TVM cannot compile the program, a function cannot be tuned in two tries, the tuned program
            crashes, hangs or gives other numbers than torch, or the records cannot be written.
    """
    module = untuned_functions(module, cpu, name=name)
    records = records_for(cpu)
    functions = {
        variable.name_hint: (variable, function, identity(function))
        for variable, function in module.functions.items()
        if isinstance(function, PrimFunc) and not (function.attrs or {}).get(_SCHEDULED, False)
    }
    found: dict[str, TuningRecord] = {}
    tuned: list[str] = []
    with TuningProcess(cpu.threads) as process:
        for hint, (variable, function, key) in functions.items():
            record = records.find(key, trials)
            if record is None:
                new = _tune(process, function, cpu, f"{hint} of {name}", trials, seed, timeout_s)
                record = TuningRecord(key, hint, trials, new.trace, new.seconds, new.untuned_seconds)
                record = records.publish(record)
                tuned.append(hint)
            found[hint] = record
            module.update_func(variable, scheduled(function, record.trace))
        code = f"{name} {tvm_ffi.structural_hash(module)}"
        if example is not None and not records.is_verified(code):
            _verify(process, module, cpu, name, example, timeout_s)
            records.mark_verified(code)
    return TunedModule(module, found, tuple(tuned))


def untuned_functions(module: Any, cpu: Cpu, *, name: str) -> Any:
    """Turns a Relax program into calls of functions whose loops are as TVM declares them: all that can be had for a
    processor that this machine cannot run.

    Raises:
        TrimtabError: TVM cannot compile the program.
    """
    try:
        return fused(module, cpu)
    except Exception as error:  # TVM raises many types
        raise TrimtabError(f"TVM cannot compile {name}: {first_line(error)}; {_REMEDY}") from error


def fused(module: Any, cpu: Cpu) -> Any:
    """The program as calls of TVM's own functions, neighbours fused; no loop is scheduled yet."""
    transform = relax.transform
    passes = [
        relax.backend.DispatchSampling(),
        relax.backend.DispatchSortScan(),
        transform.DecomposeOpsForInference(),
        transform.CanonicalizeBindings(),
        transform.LegalizeOps(),
        transform.AnnotateTIROpPattern(),
        transform.FoldConstant(),
        transform.FuseOps(),
        transform.FuseTIR(),
        transform.DeadCodeElimination(),
    ]
    with cpu.target:
        return tvm.transform.Sequential(passes)(module)


def identity(function: Any) -> str:
    """Text that functions have in common if a schedule of one is a schedule of the other, in every process: same
    structure and, as schedules go by them, same names of blocks."""
    blocks = re.findall(r'T\.sblock\("([^"]*)"', function.script())
    text = f"{tvm_ffi.structural_hash(function)} {' '.join(blocks)}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def scheduled(function: Any, trace: str) -> Any:
    """The function with its loops as the trace says."""
    schedule = tvm.s_tir.Schedule(tvm.IRModule({"main": function}))
    tvm.s_tir.schedule.Trace.apply_json_to_schedule(json.loads(trace), schedule)
    return schedule.mod["main"].with_attr(_SCHEDULED, True)


def compile_tuned(
    module: nn.Module, example_input: torch.Tensor, cpu: Cpu | None = None, *, trials: int = TRIALS
) -> "TunedNetwork":
    """Compiles a whole network the way TVM's users do, without any rule of Trimtab's: a peer for benchmarks.

    Args:
        module: the network in evaluation mode. Fold its batch norms beforehand: TVM's own folding takes seconds.
        example_input: [N, ...] float32; the code is for this shape.
        cpu: this machine's by default.
        trials: schedules sampled a function.

    Raises:
        TrimtabError: see `tuned_functions`; or TVM cannot import the network.
    """
    begin = time.perf_counter()
    cpu = cpu or cpu_for()
    name = type(module).__name__
    module = copy.deepcopy(module)
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.data = tensor.data.contiguous()  # TVM reads memory, not strides
    with torch.no_grad():
        expected = module(example_input)
        imported = imported_program(module, (example_input,), name)
    tuned = tuned_functions(
        imported, cpu, name=name, example=lambda: ([example_input.numpy()], expected.numpy()), trials=trials
    )
    executable = tvm.compile(tuned.module, target=cpu.target)
    return TunedNetwork(executable, time.perf_counter() - begin, tuned)


@dataclass(frozen=True)
class TunedNetwork:
    """A network compiled by `compile_tuned`.

    Attributes:
        executable: TVM's; `executable.export_library(path)` writes it to a file.
        seconds: that making it took, tuning included.
        functions: what it consists of.
    """

    executable: Any
    seconds: float
    functions: TunedModule

    @cached_property
    def run(self) -> Callable[[FloatArray], FloatArray]:
        """The network, from array to array."""
        return callable_network(relax.VirtualMachine(self.executable, tvm.cpu()))


def imported_program(module: nn.Module, inputs: tuple[torch.Tensor, ...], name: str, *, whole: bool = False) -> Any:
    """The module as a Relax program.

    Args:
        module: in evaluation mode.
        inputs: examples; the program is for their shapes.
        name: for messages.
        whole: keep operators whole, which gives better code where TVM knows them; by default torch takes them apart.

    Raises:
        TrimtabError: torch cannot export it, or TVM cannot read what it exported.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's, about its own tree utilities
            program = torch.export.export(module, inputs)
            return from_exported_program(program, unwrap_unit_return_tuple=True, run_ep_decomposition=not whole)
    except Exception as error:  # whatever two importers raise
        raise TrimtabError(f"TVM cannot import {name}: {first_line(error)}; {_REMEDY}") from error


def _tune(
    process: TuningProcess, function: Any, cpu: Cpu, what: str, trials: int, seed: int, timeout_s: float
) -> Found:
    module = tvm.ir.save_json(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}))
    reasons = []
    for attempt in range(_TRIES):
        try:
            return process.call("search", module, cpu, trials, seed + attempt, timeout_s=timeout_s)
        except TuningFailure as error:
            reasons.append(str(error))
    raise TrimtabError(f"MetaSchedule cannot tune {what}: {reasons[-1]}; {_REMEDY}")


def _verify(process: TuningProcess, module: Any, cpu: Cpu, name: str, example: Example, timeout_s: float) -> None:
    operands, expected = example()
    text = tvm.ir.save_json(module)
    output, reason = None, ""
    for _ in range(_TRIES):
        try:
            output = process.call("execute", text, cpu, tuple(operands), timeout_s=timeout_s)
            break
        except TuningFailure as error:
            reason = str(error)
    if output is None:
        raise TrimtabError(f"{name} cannot be run as TVM compiles it: {reason}; {_REMEDY}")
    difference = relative_error(output, expected)
    if difference > TOLERANCE:
        raise TrimtabError(
            f"TVM computes {name} wrongly: relative error {difference:.3g} against torch, at most {TOLERANCE:g} "
            f"allowed; {_REMEDY}"
        )
