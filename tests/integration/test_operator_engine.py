"""Kernels in the process that times them: what is timed, and that it is checked."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relax

from backends.operator_timing import OperatorTimer
from backends.recipes import OperatorFailure
from backends.tvm.code import structure_of
from backends.tvm.kernels.base import Kernel, Span, Window
from backends.tvm.kernels.convolution import Conv2d
from backends.tvm.kernels.elementwise import Elementwise
from backends.tvm.kernels.epilogue import Activation, Epilogue
from backends.tvm.kernels.integer.convolution import IntegerConv2d
from backends.tvm.kernels.integer.quantise import Quantise
from backends.tvm.kernels.movement import Gather
from backends.tvm.operator_engine import TvmEngine, copies_of_weight, in_a_row
from backends.tvm.target import cpu_for

ENGINE = "backends.tvm.operator_engine:TvmEngine"
CPU = cpu_for()
LANES = CPU.lanes


def conv(blocks: int = 2, size: int = 8, residual: bool = False) -> Conv2d:
    """A 3 x 3 convolution that keeps shape."""
    return Conv2d(
        source=(1, blocks, size, size, LANES),
        span=Span(blocks, LANES, 0),
        blocks=blocks,
        size=(size, size),
        lanes=LANES,
        window=Window((3, 3), padding=(1, 1, 1, 1)),
        epilogue=Epilogue(residual=residual, activation=Activation(low=0.0)),
    )


GATHER = Gather((1, 2, 6, 6, LANES), 1, (3, 3), (0, 0), (2, 2), 0.0)
SUM = Elementwise((1, 2, 6, 6, LANES), "add")
IN_8_BITS = IntegerConv2d(
    (1, 2, 8, 8, LANES), Span(LANES // 2, 4, 0), 2, (8, 8), LANES, Window((3, 3), padding=(1, 1, 1, 1))
)
QUANTISE = Quantise((1, 2, 6, 6, LANES))


@dataclass(frozen=True, slots=True)
class WrongGather(Gather):
    """What a miscompiled kernel looks like from outside."""

    def reference(self, operands):
        return Gather.reference(self, operands) + np.float32(0.5)


@dataclass(frozen=True, slots=True)
class UnscheduledGather(Gather):
    """A rule that fails."""

    def build(self, cpu):
        raise RuntimeError("the loops are not in a chain\nand much more")


@dataclass(frozen=True, slots=True)
class EndlessGather(Gather):
    """A compiler that does not come back."""

    def build(self, cpu):
        time.sleep(3600)


@pytest.fixture(scope="module")
def timer(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        with OperatorTimer(ENGINE, timeout_s=120.0) as timer:
            yield timer


@pytest.mark.parametrize(
    "kernel", [conv(), conv(residual=True), GATHER, SUM, IN_8_BITS, QUANTISE], ids=lambda kernel: kernel.kind
)
def test_kernels_are_timed_and_right(timer, kernel):
    result = timer.measure(kernel)
    assert 0 < result.p10_s <= result.latency_s <= result.p90_s < 1e-2
    assert result.error < 1e-5
    assert kernel.output_dtype == "float32" or result.error == 0.0
    assert result.pace_s > 0
    assert result.structure == structure_of(kernel.build(CPU))  # in another process


def test_a_larger_operator_takes_longer(timer):
    assert timer.measure(conv(4, 32)).latency_s > timer.measure(conv(2, 16)).latency_s  # by sixteen times the work


@pytest.mark.parametrize(
    ("kind", "told"),
    [(WrongGather, "answers wrongly"), (UnscheduledGather, "RuntimeError: the loops are not in a chain")],
)
def test_a_kernel_that_fails_is_a_failure_and_the_next_one_is_timed(timer, kind, told):
    fields = (GATHER.source, GATHER.blocks, GATHER.size, GATHER.offset, GATHER.stride, GATHER.fill)
    with pytest.raises(OperatorFailure) as caught:
        timer.measure(kind(*fields))
    assert told in caught.value.reason
    assert "\n" not in caught.value.reason
    assert timer.measure(GATHER).error == 0.0


def test_a_compiler_that_hangs_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with (
        OperatorTimer(ENGINE, timeout_s=0.2) as timer,
        pytest.raises(OperatorFailure, match="did not finish"),
    ):
        timer.measure(EndlessGather(GATHER.source, GATHER.blocks, GATHER.size, GATHER.offset, GATHER.stride))


@pytest.mark.parametrize("kernel", [conv(), IN_8_BITS, GATHER], ids=lambda kernel: kernel.kind)
def test_every_call_in_the_row_is_made(kernel: Kernel):
    operands = kernel.example_operands(CPU, np.random.default_rng(0))
    row = in_a_row(kernel, CPU)
    machine = relax.VirtualMachine(row.executable, tvm.cpu())
    weights = set()
    made = 0

    def watch(function, name, before, result, *arguments):
        nonlocal made
        if name == kernel.kind and before:
            made += 1
            weights.add(arguments[1].numpy().tobytes())

    machine.set_instrument(watch)
    output = machine["main"](tvm.runtime.tensor(operands[0])).numpy()
    assert made == row.calls > 1
    if "conv2d" in kernel.kind:
        assert len(weights) == copies_of_weight(operands[1].nbytes, row.calls) > 1
    np.testing.assert_allclose(output, kernel.reference(operands), atol=1e-5)


def test_calls_elsewhere_compute_the_same():
    prepared = TvmEngine().prepare(conv())
    first = prepared.call().numpy()
    assert prepared.elsewhere
    for call in prepared.elsewhere:
        np.testing.assert_array_equal(call().numpy(), first)


def test_copies_fill_a_cores_cache_but_not_the_memory():
    assert copies_of_weight(1 << 10, 16) == 16
    assert copies_of_weight(1 << 20, 16) == 4
    assert copies_of_weight(100 << 20, 16) == 2
    assert copies_of_weight(1 << 30, 16) == 1
    assert copies_of_weight(1 << 10, 4) == 4


def test_the_structure_is_of_the_code_and_not_of_its_name():
    function = conv().build(CPU)
    assert structure_of(function) == structure_of(conv().build(CPU))
    assert structure_of(function) == structure_of(function.with_attr("global_symbol", "other"))
    assert structure_of(function) != structure_of(conv(residual=True).build(CPU))
