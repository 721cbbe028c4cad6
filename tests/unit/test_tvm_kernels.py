"""Every kernel, compiled for this machine and for older ones, against torch."""

import math
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
import tvm

from backends.tvm.kernels.base import Kernel, Span, Window
from backends.tvm.kernels.convolution import Conv2d
from backends.tvm.kernels.dense import Dense
from backends.tvm.kernels.depthwise import Depthwise
from backends.tvm.kernels.elementwise import BINARY_OPERATIONS, Elementwise
from backends.tvm.kernels.epilogue import ACTIVATIONS, IDENTITY, Activation, Epilogue
from backends.tvm.kernels.grouped import GroupedConv2d, Groups, pack_grouped
from backends.tvm.kernels.movement import Concat, Gather, GatherFeatures, Pack, Unpack
from backends.tvm.kernels.pooling import AveragePool, GlobalAverage, MaxPool
from backends.tvm.kernels.tiles import choose_vector_tile
from backends.tvm.target import Cpu, cpu_for

RELU = Activation(low=0.0)
CPUS = [None, "haswell", "x86-64"]  # this machine, AVX2, and 128-bit vectors


def compiled(kernel: Kernel, cpu: Cpu):
    return tvm.compile(kernel.build(cpu).with_attr("global_symbol", "main"), target=cpu.target)["main"]


def run(kernel: Kernel, cpu: Cpu, operands: list[np.ndarray]) -> np.ndarray:
    output = tvm.runtime.tensor(np.full(kernel.output_shape, np.nan, dtype=np.float32))
    compiled(kernel, cpu)(*map(tvm.runtime.tensor, operands), output)
    return output.numpy()


def error(kernel: Kernel, cpu: Cpu, seed: int = 0) -> float:
    """max|a-b| / max|b| between the compiled kernel and torch, on random operands; every element counts."""
    operands = kernel.example_operands(cpu, np.random.default_rng(seed))
    expected = kernel.reference(operands)
    assert expected.shape == kernel.output_shape
    assert np.isfinite(expected).all()
    return float(np.abs(run(kernel, cpu, operands) - expected).max() / np.abs(expected).max())


def conv(lanes: int, **changes) -> Conv2d:
    """A convolution of 2 x lanes channels at 9 x 13 into 3 blocks, 3 x 3."""
    fields = {
        "source": (1, 2, 9, 13, lanes),
        "span": Span(2, lanes, 0),
        "blocks": 3,
        "size": (9, 13),
        "lanes": lanes,
        "window": Window((3, 3), padding=(1, 1, 1, 1)),
    }
    return Conv2d(**{**fields, **changes})


def dense(cpu: Cpu, batch: int, size: int, outputs: int, span: Span, activation: Activation = IDENTITY) -> Dense:
    needed = -(-outputs // cpu.lanes)
    tile, blocks, partial = choose_vector_tile(needed, batch, span.width, cpu)
    return Dense(batch, size, span, outputs, blocks, cpu.lanes, tile, partial, Epilogue(activation=activation))


def grouped(lanes: int, count: int, inputs: int, outputs: int, **changes) -> GroupedConv2d:
    """A grouped convolution, 3 x 3, of 9 x 12 pixels."""
    fields = {
        "source": (1, -(-count * inputs // lanes), 9, 12, lanes),
        "groups": Groups(count, inputs, outputs, lanes),
        "size": (9, 12),
        "window": Window((3, 3), padding=(1, 1, 1, 1)),
    }
    return GroupedConv2d(**{**fields, **changes})


def kernels(cpu: Cpu) -> list[Kernel]:
    """Several recipes of every kind."""
    v = cpu.lanes
    pixel, strided = Window((1, 1)), Window((3, 3), (2, 2), (1, 1, 1, 1))
    map5 = (2, 3, 7, 10, v)
    return [
        conv(v),
        conv(v, source=(2, 2, 9, 13, v), epilogue=Epilogue(True, Activation(kind="silu"))),
        conv(v, span=Span(3, v // 2, v // 2), window=strided, size=(5, 7), epilogue=Epilogue(activation=RELU)),
        conv(v, span=Span(7, 2, None), epilogue=Epilogue(True, RELU)),  # scattered pairs of channels
        conv(v, source=(1, 2, 5, 31, v), size=(5, 31), epilogue=Epilogue(residual=True)),  # 32 columns, then cropped
        conv(v, source=(1, 3, 17, 19), span=Span(3, 1, 0), size=(9, 10), window=strided),  # a first layer's plain input
        conv(v, source=(1, 3, 17, 19), span=Span(2, 1, None), size=(17, 19)),
        conv(v, size=(9, 13), window=Window((3, 1), padding=(2, 0, 2, 0), dilation=(2, 1))),
        conv(v, source=(1, 4, 1, 1, v), span=Span(4, v, 0), blocks=5, size=(1, 1), window=pixel),
        conv(v, source=(1, 4, 7, 7, v), span=Span(4, v, 0), blocks=8, size=(7, 7), window=pixel),
        conv(v, source=(1, 2, 9, 13, v), size=(3, 4), window=Window((3, 3), (3, 3))),  # rows and columns are left over
        grouped(v, 32, 4, 4, epilogue=Epilogue(True, RELU)),
        grouped(v, 3, 20, 12, size=(5, 6), window=strided),
        grouped(v, 3, 3, 5),
        grouped(v, 2, 20, 20, epilogue=Epilogue(activation=Activation(kind="silu"))),
        grouped(v, 2, 24, 2 * v, window=Window((1, 1))),
        grouped(v, 4, 8, v // 2 * 3),
        grouped(v, 20, 1, 3),
        Depthwise((2, 3, 9, 13, v), (9, 13), Window((3, 3), padding=(1, 1, 1, 1)), Epilogue(True, RELU)),
        Depthwise((1, 3, 9, 13, v), (5, 7), strided, Epilogue(activation=Activation(kind="hard_swish"))),
        Depthwise((1, 2, 14, 14, v), (14, 14), Window((7, 7), padding=(3, 3, 3, 3))),
        Depthwise((1, 1, 11, 11, v), (7, 7), Window((3, 3), dilation=(2, 2))),
        dense(cpu, 1, 70, 10, Span(70, 1, 0)),
        dense(cpu, 1, 128, 100, Span(8, 16, 0), Activation(kind="gelu")),
        dense(cpu, 8, 96, 33, Span(5, 8, None), RELU),
        MaxPool(map5, (4, 5), strided),
        MaxPool(map5, (5, 8), Window((3, 3), dilation=(1, 1))),
        MaxPool((1, 1, 11, 11, v), (5, 5), Window((3, 3), (2, 2))),
        AveragePool(map5, (4, 5), strided),
        AveragePool(map5, (4, 6), Window((3, 3), (2, 2), (1, 1, 1, 1)), count_border=False),  # and a ceil_mode column
        AveragePool(map5, (4, 6), Window((3, 3), (2, 2), (1, 1, 1, 1))),
        GlobalAverage(map5),
        *(Elementwise(map5, operation) for operation in BINARY_OPERATIONS if operation != "divide"),
        Elementwise(map5, "copy", Activation(kind="tanh")),
        Elementwise(map5, "affine", RELU),
        Elementwise((3, 37), "affine", Activation(kind="sigmoid")),
        Elementwise((3, 37), "add"),
        Elementwise(map5, "multiply", Activation(kind="hard_swish"), other=(2, 3, 1, 1, v)),
        Elementwise(map5, "add", other=map5[1:]),
        Elementwise((3, 37), "subtract", other=(37,)),
        Pack((2, 2 * v + 3, 5, 6), v),
        Unpack(map5, 2 * v + 3),
        GatherFeatures((3, 37), 21),
        Gather(map5, 2, (7, 10)),
        Gather(map5, 2, (8, 4), offset=(-1, 1), stride=(1, 2), fill=2.0),
        Gather(map5, 5, (4, 5), stride=(2, 2)),
        Concat(((2, 3, 4, 5, v), (2, 1, 4, 5, v), (2, 2, 4, 5, v)), ((0, 2), (0,), (1, 0))),
        Concat(((2, 3, 4, 5, v), (2, 2, 4, 5, v)), ((0, 1, 2), (0, 1)), affine=True, activation=RELU),
        Concat(((1, 3, 4, 5, v), (1, 2, 4, 5, v)), ((1, 2), (0,)), activation=Activation(kind="silu")),
    ]


@pytest.mark.parametrize("mcpu", CPUS)
def test_every_kernel_computes_what_torch_does(mcpu):
    cpu = cpu_for(mcpu)
    errors = {kernel.recipe: error(kernel, cpu) for kernel in kernels(cpu)}
    assert {recipe: value for recipe, value in errors.items() if not value < 2e-6} == {}


@pytest.mark.parametrize("threads", [2, 3])
def test_several_threads_compute_the_same(threads):
    # TVM starts its threads once a process, so they need one of their own; work is large enough that they are used
    code = f"""
import tests.unit.test_tvm_kernels as kernels_
from backends.tvm.target import cpu_for
cpu = cpu_for(threads={threads})
for kernel in kernels_.large_kernels(cpu):
    assert kernel.work >= 1 << 18, kernel.recipe
    assert "parallel" in kernel.build(cpu).script(), kernel.recipe
    assert kernels_.error(kernel, cpu) < 5e-6, kernel.recipe
"""
    environment = {**os.environ, "TVM_NUM_THREADS": str(threads)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def large_kernels(cpu: Cpu) -> list[Kernel]:
    """One of each kind that is spread over threads."""
    v = cpu.lanes
    large = (1, 4, 66, 64, v)
    return [
        conv(v, source=(1, 4, 31, 31, v), span=Span(4, v, 0), size=(31, 31), blocks=5),
        grouped(v, 4, v, v, source=(1, 4, 31, 31, v), size=(31, 31)),
        conv(v, source=(1, 12, 9, 8, v), span=Span(12, v, 0), size=(9, 8), blocks=12),  # few rows, many channels
        conv(v, source=(1, 9, 7, 35, v), span=Span(9, v, 0), size=(7, 35), blocks=1),  # nothing to share evenly
        Depthwise(large, (66, 64), Window((3, 3), padding=(1, 1, 1, 1))),
        Depthwise((1, 4, 67, 64, v), (34, 32), Window((5, 5), (2, 2), (2, 2, 2, 2))),
        dense(cpu, 1, 1024, 1000, Span(64, 16, 0)),
        MaxPool(large, (33, 32), Window((3, 3), (2, 2), (1, 1, 1, 1))),
        GlobalAverage(large),
        Elementwise(large, "add"),
        Gather(large, 4, (66, 64)),
        Concat(((2, 2, 64, 64, v), (2, 3, 64, 64, v)), ((0, 1), (0, 2))),
    ]


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("mcpu", [None, "x86-64"])
def test_activation_is_exact_and_stays_finite(kind, mcpu):
    cpu = cpu_for(mcpu)
    activation = Activation(low=-0.5, high=20.0, kind=kind, slope=0.2, alpha=1.3)
    magnitudes = np.concatenate([np.linspace(0, 30, 20000), np.logspace(-12, 0, 1000)])
    values = np.concatenate([magnitudes, -magnitudes]).astype(np.float32)
    kernel = Elementwise((1, values.size), "copy", activation)
    result = run(kernel, cpu, [values[None]])[0]
    expected = activation.reference(torch.from_numpy(values).double()).numpy()
    assert np.abs(result - expected).max() <= 2e-7 * np.abs(expected).max()
    if "gelu" not in kind:  # torch's own GELU loses the tail of negative numbers
        assert (np.abs(result - expected) <= 1e-6 * np.abs(expected)).all()
    huge = np.logspace(1.5, 18, 500).astype(np.float32)
    kernel = Elementwise((1, 1000), "copy", activation)
    result = run(kernel, cpu, [np.concatenate([huge, -huge])[None]])
    assert np.isfinite(result).all()
    np.testing.assert_allclose(result, kernel.reference([np.concatenate([huge, -huge])[None]]), rtol=1e-5, atol=1e-5)


def test_activations_merge_only_where_one_remains():
    relu6 = Activation(low=0.0, high=6.0)
    assert RELU.then(Activation(high=6.0)) == relu6
    assert relu6.then(Activation(low=-1.0)) == relu6
    assert relu6.then(IDENTITY) == relu6
    assert IDENTITY.then(Activation(kind="gelu")) == Activation(kind="gelu")
    assert RELU.then(Activation(kind="gelu")) is None
    assert Activation(kind="gelu").then(RELU) is None


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="not 'swish'"):
        Activation(kind="swish")
    with pytest.raises(ValueError, match="not 'power'"):
        Elementwise((1, 4), "power")


def test_recipes_tell_kernels_apart_and_survive_pickling():
    every = kernels(cpu_for())
    assert len({kernel.recipe for kernel in every}) == len(set(every)) == len(every)
    assert [pickle.loads(pickle.dumps(kernel)) for kernel in every] == every
    assert conv(16).recipe == conv(16, blocks=np.int64(3)).recipe
    assert conv(16, epilogue=Epilogue(True, RELU)).recipe == (
        "conv2d(source=(1,2,9,13,16),span=Span(steps=2,width=16,start=0),blocks=3,size=(9,13),lanes=16,"
        "window=Window(kernel=(3,3),padding=(1,1,1,1)),epilogue=Epilogue(residual=True,activation=Activation(low=0.0)))"
    )


def test_every_field_counts_in_a_recipe():
    texts = {
        conv(16, **change).recipe for change in [{}, {"blocks": 4}, {"size": (9, 12)}, {"span": Span(2, 16, None)}]
    }
    assert len(texts) == 4
    assert Activation(high=math.inf, kind="elu", alpha=0.5) != Activation(kind="elu")


@pytest.mark.parametrize(("count", "inputs", "outputs"), [(32, 4, 4), (3, 80, 20), (2, 20, 20), (5, 1, 2), (2, 24, 24)])
def test_packed_groups_are_the_block_diagonal_of_a_dense_convolution(count, inputs, outputs):
    lanes = 16
    layout = Groups(count, inputs, outputs, lanes)
    weight = np.random.default_rng(0).standard_normal((count * outputs, inputs, 1, 1)).astype(np.float32)
    packed = pack_grouped(weight, count, lanes).transpose(0, 5, 3, 4, 1, 2).reshape(layout.blocks * lanes, layout.reads)
    dense = np.zeros((layout.blocks * lanes, count * inputs), dtype=np.float32)
    for row, values in enumerate(packed):
        first = layout.first(row // lanes)
        dense[row, first : first + layout.reads] = values
    diagonal = np.kron(np.eye(count), np.ones((outputs, inputs)))
    np.testing.assert_array_equal(dense[: count * outputs], diagonal * np.tile(weight[:, :, 0, 0], count))
    assert not dense[count * outputs :].any()


def test_groups_of_whole_blocks_compute_nothing_twice():
    groups = Groups(4, 48, 32, 16)
    assert (groups.reads, groups.alike, groups.width) == (48, 2, 16)
    assert [groups.first(block) for block in range(groups.blocks)] == [0, 0, 48, 48, 96, 96, 144, 144]


def test_work_and_traffic():
    kernel = conv(16)
    assert kernel.work == 48 * 9 * 13 * 32 * 9
    assert kernel.traffic == 4 * (32 * 9 * 13 + 48 * 32 * 9 + 48 + 48 * 9 * 13)
    assert Elementwise((2, 3, 4, 5, 16), "multiply", other=(2, 3, 1, 1, 16)).traffic == 4 * (1920 * 2 + 96)
