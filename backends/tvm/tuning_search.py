"""Looking for a quick schedule of one function: MetaSchedule samples candidates, this process compiles and times them.

MetaSchedule's own builder and runner start a pool of processes a batch, which costs more than the work; here nothing
leaves the process. So call it in one that may die (`backends.tvm.tuning_worker`): a candidate can crash or hang.
"""

import json
import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
import tvm_ffi
from tvm import relax
from tvm.s_tir import meta_schedule

from backends.measuring import TOLERANCE, relative_error
from backends.tvm.target import Cpu

Array = npt.NDArray[Any]

_CONTENDERS = 4
"""Candidates that are timed again, in turns, before the quickest is chosen: the machine need not be quiet."""
_ROUNDS = 5
_SAMPLE_MS = 5


@dataclass(frozen=True, slots=True)
class Found:
    """The quickest schedule of a search.

    Attributes:
        trace: JSON, as `Trace.apply_json_to_schedule` takes it; "[[], []]" where nothing was quicker than the function
            as it stood.
        seconds, untuned_seconds: of one call, scheduled so and as it stood.
        candidates: different schedules that were compiled and gave the right numbers.
    """

    trace: str
    seconds: float
    untuned_seconds: float
    candidates: int


UNTOUCHED = "[[], []]"
"""The trace of a schedule that changes nothing."""


def search(module: str, cpu: Cpu, trials: int, seed: int) -> Found:
    """Samples schedules of a function, checks each against the function as it stands and keeps the quickest.

    Args:
        module: TVM's JSON of an IRModule whose "main" is the function, of static shapes, outputs last.
        cpu: what it is compiled for.
        trials: schedules to sample.
        seed: of the samples and of the operands.

    Raises:
        ValueError: no candidate compiles and gives the right numbers.
    """
    untuned = tvm.ir.load_json(module)
    operands = _operands(untuned["main"], np.random.default_rng(seed))
    stood = _Candidate(untuned, UNTOUCHED, cpu)
    expected = stood.outputs(operands)
    stood.time(operands)
    found: list[_Candidate] = []
    reason = "MetaSchedule has no schedule for it"
    for schedule in _samples(untuned, cpu, trials, seed):
        try:
            candidate = _Candidate(schedule.mod, _json_of(schedule.trace), cpu)
        except Exception as error:  # TVM raises many types
            reason = first_line(error)
            continue
        outputs = candidate.outputs(operands)
        difference = max(map(_difference, outputs, expected))
        if difference > TOLERANCE:
            reason = f"relative error {difference:.3g} against the function before scheduling"
            continue
        candidate.time(operands)
        found.append(candidate)
    if not found:
        raise ValueError(f"none of {trials} schedules is of use ({reason})")
    contenders = [stood, *sorted(found, key=lambda candidate: candidate.seconds)[:_CONTENDERS]]
    for _ in range(_ROUNDS):
        for candidate in contenders:
            candidate.time(operands)
    best = min(contenders, key=lambda candidate: candidate.seconds)
    return Found(best.trace, best.seconds, stood.seconds, len(found))


def execute(module: str, cpu: Cpu, operands: Sequence[Array]) -> Array:
    """Compiles a module and runs its Relax function "main".

    Args:
        module: TVM's JSON.
        cpu: what it is compiled for.
        operands: in calling order.

    Returns:
        The one tensor that the function gives.
    """
    machine = relax.VirtualMachine(tvm.compile(tvm.ir.load_json(module), target=cpu.target), tvm.cpu())
    return np.asarray(machine["main"](*map(_device_array, operands)).numpy())


def first_line(error: BaseException) -> str:
    """What an error says, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class _Candidate:
    """A compiled function and the seconds it took."""

    def __init__(self, module: Any, trace: str, cpu: Cpu) -> None:
        self.trace = trace
        self._library = tvm.compile(module, target=cpu.target)
        self._samples: list[float] = []

    @property
    def seconds(self) -> float:
        return median(self._samples)

    def outputs(self, operands: Sequence[Array]) -> list[Array]:
        """Every parameter as it stands after a call; those that only go in are as they were."""
        arguments = [_device_array(operand) for operand in operands]
        self._library["main"](*arguments)
        return [argument.numpy() for argument in arguments]

    def time(self, operands: Sequence[Array]) -> None:
        arguments = [_device_array(operand) for operand in operands]
        timer = self._library.mod.time_evaluator("main", tvm.cpu(), number=1, repeat=1, min_repeat_ms=_SAMPLE_MS)
        self._samples.append(float(timer(*arguments).mean))


def _samples(module: Any, cpu: Cpu, trials: int, seed: int) -> Iterator[Any]:
    """Schedules, each different from those before."""
    # TuneContext imports this package, which parses the intrinsics of every GPU for 20 s. The rules here use none:
    # MetaSchedule matches those for integer dot products on weights that are not packed for them, too.
    sys.modules.setdefault("tvm.s_tir.tensor_intrin", types.ModuleType("tvm.s_tir.tensor_intrin"))
    context = meta_schedule.TuneContext(
        module,
        target=cpu.target,
        space_generator=meta_schedule.space_generator.PostOrderApply(
            sch_rules=_rules(cpu), postprocs="llvm", mutator_probs={}
        ),
        search_strategy="replay-trace",
        rand_state=seed + 1,
        num_threads=1,
    )
    context.pre_tuning(trials, trials)
    seen = set()
    for candidate in context.generate_measure_candidates() or ():
        structure = tvm_ffi.structural_hash(candidate.sch.mod)
        if structure not in seen:
            seen.add(structure)
            yield candidate.sch


def _rules(cpu: Cpu) -> list[Any]:
    """MetaSchedule's rules for CPUs, without spreading loops over threads where there is one only."""
    rules = list(meta_schedule.ScheduleRule.create("llvm"))
    if cpu.threads > 1:
        return rules
    unparallel = meta_schedule.schedule_rule.ParallelizeVectorizeUnroll(
        max_jobs_per_core=-1, max_vectorize_extent=64, unroll_max_steps=[0, 16, 64, 512], unroll_explicit=True
    )
    kind = meta_schedule.schedule_rule.ParallelizeVectorizeUnroll
    return [unparallel if isinstance(rule, kind) else rule for rule in rules]


def _operands(function: Any, generator: np.random.Generator) -> list[Array]:
    """Buffers for every parameter. Integers may be positions, so they are zeros and valid for any size."""
    operands = []
    for parameter in function.params:
        shape, dtype = tuple(int(extent) for extent in parameter.shape), str(parameter.dtype)
        if dtype.startswith("float"):
            operands.append(generator.uniform(0.1, 1.0, shape).astype(dtype))
        elif dtype == "bool":
            operands.append(generator.random(shape) < 0.5)
        else:
            operands.append(np.zeros(shape, dtype=dtype))
    return operands


def _difference(given: Array, expected: Array) -> float:
    """Relative error; infinities, as in masks, must be the same ones in the same places, and so must what is none."""
    if not np.array_equal(np.where(np.isfinite(given), 0, given), np.where(np.isfinite(expected), 0, expected), True):
        return float("inf")
    return relative_error(*(np.where(np.isfinite(array), array, 0) for array in (given, expected)))


def _json_of(trace: Any) -> str:
    return json.dumps(trace.as_json(), default=lambda literal: literal.value, separators=(",", ":"))


def _device_array(array: Array) -> Any:
    return tvm.runtime.tensor(np.ascontiguousarray(array), tvm.cpu())
