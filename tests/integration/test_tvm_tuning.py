"""MetaSchedule tunes what no rule of ours covers: once a device, in a process that may die, to torch's numbers."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import tvm
import tvm_ffi
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tvm import relax

from backends.operator_timing import OperatorTimer
from backends.tvm import tuning_search
from backends.tvm.operator_engine import TvmEngine
from backends.tvm.stock import StockOperator, inline_into
from backends.tvm.target import cpu_for
from backends.tvm.tuning import TRIALS as TUNED_TRIALS
from backends.tvm.tuning import compile_tuned, fused, identity, records_for, tuned_functions
from backends.tvm.tuning_worker import TuningFailure, TuningProcess
from search_spaces.errors import TrimtabError
from search_spaces.operators import TensorInput

CPU = cpu_for()
TRIALS = 8
X, Y, Z = (TensorInput(index) for index in range(3))
FEATURES = ((1, 8, 6, 6), "float32")

CUMSUM = StockOperator("aten.cumsum.default", (("self", X), ("dim", 2)), (FEATURES,), FEATURES)
GROUP_NORM = StockOperator(
    "aten.group_norm.default",
    (("input", X), ("num_groups", 2), ("weight", Y), ("bias", Z)),
    (FEATURES, ((8,), "float32"), ((8,), "float32")),
    FEATURES,
)
CONV_TRANSPOSE = StockOperator(
    "aten.conv_transpose2d.input",
    (("input", X), ("weight", Y), ("bias", None), ("stride", (2, 2)), ("padding", (1, 1))),
    (FEATURES, ((8, 4, 4, 4), "float32")),
    ((1, 4, 12, 12), "float32"),
)
MATMUL = StockOperator(
    "aten.matmul.default",
    (("self", X), ("other", Y)),
    (((1, 2, 8, 16), "float32"), ((1, 2, 16, 8), "float32")),
    ((1, 2, 8, 8), "float32"),
)
PIXEL_SHUFFLE = StockOperator(  # TVM reads it whole, but cannot compile it so
    "aten.pixel_shuffle.default", (("self", X), ("upscale_factor", 2)), (FEATURES,), ((1, 2, 12, 12), "float32")
)
LOG_SOFTMAX = StockOperator("aten.log_softmax.int", (("self", X), ("dim", 1)), (FEATURES,), FEATURES)
ROLL = StockOperator("aten.roll.default", (("self", X), ("shifts", (2, 3)), ("dims", (2, 3))), (FEATURES,), FEATURES)
UPSAMPLE = StockOperator(
    "aten.upsample_bilinear2d.vec",
    (("input", X), ("output_size", None), ("align_corners", False), ("scale_factors", (2.0, 2.0))),
    (FEATURES,),
    ((1, 8, 12, 12), "float32"),
)
ARGMAX = StockOperator("aten.argmax.default", (("self", X), ("dim", 1)), (FEATURES,), ((1, 6, 6), "int64"))
TOPK = StockOperator(
    "aten.topk.default", (("self", X), ("k", 3), ("dim", -1)), (FEATURES,), ((1, 8, 6, 3), "float32"), item=0
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One cache for the tests here, which may find what an earlier one tuned."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(folder))
        yield folder


@pytest.mark.parametrize(
    "operator",
    [
        GROUP_NORM,
        PIXEL_SHUFFLE,
        *(pytest.param(slow, marks=pytest.mark.slow)
          for slow in (CUMSUM, CONV_TRANSPOSE, MATMUL, LOG_SOFTMAX, ROLL, UPSAMPLE, ARGMAX, TOPK)),
    ],
    ids=lambda operator: operator.target,
)  # fmt: skip
def test_a_program_with_it_gives_torchs_numbers(operator: StockOperator) -> None:
    """Twice in one program, among operators of others', where what it gives is what it takes."""
    tuned = operator.build_module(CPU, trials=TRIALS)
    builder = relax.BlockBuilder()
    parameters = [relax.Var(f"p{i}", relax.TensorType(*given)) for i, given in enumerate(operator.inputs)]
    chained = operator.inputs[0] == operator.output
    with builder.function("main", parameters):
        with builder.dataflow():
            first = builder.emit(relax.op.add(parameters[0], parameters[0]))
            result = inline_into(builder, tuned, [first, *parameters[1:]])
            if chained:
                result = inline_into(builder, tuned, [result, *parameters[1:]])
            output = builder.emit_output(result)
        builder.emit_func_output(output)
    operands = operator.example_operands(CPU, np.random.default_rng(7))
    given = _run(builder.get(), operands)
    expected = operator.reference([operands[0] + operands[0], *operands[1:]])
    if chained:
        expected = operator.reference([expected, *operands[1:]])
    assert given.dtype == expected.dtype
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)


def test_tuned_once_and_the_same_ever_after(monkeypatch: pytest.MonkeyPatch) -> None:
    first = GROUP_NORM.build_module(CPU, trials=TRIALS)
    record = records_for(CPU).find(_identity(GROUP_NORM), TRIALS)
    assert record is not None
    assert 0 < record.seconds <= record.untuned_seconds
    monkeypatch.setattr(TuningProcess, "call", _never)
    assert tvm_ffi.structural_equal(first, GROUP_NORM.build_module(CPU, trials=TRIALS))
    with pytest.raises(AssertionError, match="asked for search"):
        GROUP_NORM.build_module(CPU, trials=TRIALS + 1)


def test_it_is_timed_like_a_kernel() -> None:
    GROUP_NORM.build_module(CPU, trials=TRIALS)
    records, function = records_for(CPU), _identity(GROUP_NORM)
    known = records.find(function, TRIALS)
    assert known is not None
    records.publish(replace(known, trials=TUNED_TRIALS))  # as if it had taken that many
    prepared = TvmEngine().prepare(GROUP_NORM)
    assert prepared.error < 1e-5
    assert prepared.calls > 1
    prepared.call()
    assert prepared.structure == TvmEngine().prepare(GROUP_NORM).structure
    with OperatorTimer("backends.tvm.operator_engine:TvmEngine") as timer:
        timing = timer.measure(GROUP_NORM)
    assert timing.structure == prepared.structure
    assert timing.latency_s > 0


@pytest.mark.slow
def test_another_process_takes_the_same_code() -> None:
    code = tvm_ffi.structural_hash(GROUP_NORM.build_module(CPU, trials=TRIALS))
    script = """
import pickle, sys, tvm_ffi
from backends.tvm.target import cpu_for
from backends.tvm.tuning_worker import TuningProcess
TuningProcess.call = None
operator = pickle.load(sys.stdin.buffer)
sys.stdout.write(str(tvm_ffi.structural_hash(operator.build_module(cpu_for(), trials=int(sys.argv[1])))))
"""
    answer = subprocess.run(
        [sys.executable, "-c", script, str(TRIALS)], input=pickle.dumps(GROUP_NORM), capture_output=True, check=True
    )
    assert int(answer.stdout) == code


def test_a_hang_costs_the_operator_only() -> None:
    operator = StockOperator(
        "aten.cumsum.default", (("self", X), ("dim", 1)), (((7, 9), "float32"),), ((7, 9), "float32")
    )
    with pytest.raises(TrimtabError, match=r"cannot tune cumsum of aten\.cumsum: it did not end within 0\.05 s"):
        tuned_functions(operator.imported(), CPU, name="aten.cumsum", trials=TRIALS, timeout_s=0.05)
    assert records_for(CPU).find(_identity(operator), 1) is None


def test_a_crash_is_told_and_another_process_started() -> None:
    with TuningProcess(1) as process:
        with pytest.raises(TuningFailure, match="AttributeError"):
            process.call("no_such_function", timeout_s=60)
        assert process._running is not None
        process._running[0].kill()
        with pytest.raises(TuningFailure, match="its process was killed by signal 9"):
            process.call("first_line", ValueError("a"), timeout_s=60)
        assert process.call("first_line", ValueError("a"), timeout_s=60) == "ValueError: a"


@dataclass(frozen=True)
class _Wrong(StockOperator):
    def reference(self, operands: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return super().reference(operands) * np.float32(1.001)


def test_other_numbers_than_torchs_are_refused() -> None:
    wrong = _Wrong(GROUP_NORM.target, GROUP_NORM.arguments, GROUP_NORM.inputs, GROUP_NORM.output)
    with pytest.raises(TrimtabError, match=r"TVM computes a wrong one wrongly: relative error 0\.00099"):
        tuned_functions(wrong.imported(), CPU, name="a wrong one", example=lambda: wrong._example(CPU), trials=TRIALS)


def test_a_schedule_that_breaks_the_function_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    module = tvm.ir.save_json(_function(LOG_SOFTMAX))
    wrong = tvm.s_tir.Schedule(_function(CUMSUM))
    monkeypatch.setattr(tuning_search, "_samples", lambda *_: iter([wrong]))
    with pytest.raises(ValueError, match="none of 8 schedules is of use \\(relative error"):
        tuning_search.search(module, CPU, 8, 0)


def test_the_same_seed_samples_the_same_schedules() -> None:
    def structures(seed: int) -> list[int]:
        samples = tuning_search._samples(_function(LOG_SOFTMAX), CPU, 6, seed)
        return [tvm_ffi.structural_hash(schedule.mod) for schedule in samples]

    assert structures(1) == structures(1)
    assert structures(1) != structures(2)


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def test_a_whole_network_is_compiled_the_stock_way(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = _Small().eval()
    x = torch.randn(1, 3, 6, 6)
    folded = copy.deepcopy(network)
    folded.conv, folded.norm = fuse_conv_bn_eval(network.conv, network.norm), nn.Identity()  # type: ignore[assignment]
    compiled = compile_tuned(folded.to(memory_format=torch.channels_last), x, trials=2)
    assert compiled.seconds > 0
    assert set(compiled.functions.tuned) == set(compiled.functions.records)
    with torch.no_grad():
        np.testing.assert_allclose(compiled.run(x.numpy()), network(x).numpy(), rtol=1e-4, atol=1e-5)


def _never(self: TuningProcess, function: str, *arguments: Any, timeout_s: float) -> Any:
    raise AssertionError(f"asked for {function}")


def _function(operator: StockOperator) -> Any:
    """A module whose "main" is the operator's only function, unscheduled."""
    module = fused(operator.imported(whole=True), CPU)
    (function,) = (f for variable, f in module.functions.items() if variable.name_hint != "main")
    return tvm.IRModule({"main": function.with_attr("global_symbol", "main")})


def _identity(operator: StockOperator) -> str:
    return identity(_function(operator)["main"].without_attr("global_symbol"))


def _run(module: Any, operands: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    machine = relax.VirtualMachine(tvm.compile(module, target=CPU.target), tvm.cpu())
    result: npt.NDArray[Any] = machine["main"](*(tvm.runtime.tensor(a, tvm.cpu()) for a in operands)).numpy()
    return result
