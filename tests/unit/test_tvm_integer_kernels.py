"""Every kernel on 8-bit codes, on every way of adding up products that this machine can run, bit for bit."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import tvm

from backends.tvm.kernels.base import Kernel, Span, Window
from backends.tvm.kernels.epilogue import Activation
from backends.tvm.kernels.integer.border import Framed
from backends.tvm.kernels.integer.convolution import IntegerConv2d
from backends.tvm.kernels.integer.dense import IntegerDense
from backends.tvm.kernels.integer.depthwise import IntegerDepthwise
from backends.tvm.kernels.integer.dot import MOST_PRODUCTS
from backends.tvm.kernels.integer.epilogue import IntegerEpilogue, exact_fused
from backends.tvm.kernels.integer.quantise import Dequantise, Quantise, QuantisePlain
from backends.tvm.kernels.movement import Gather
from backends.tvm.kernels.pooling import MaxPool
from backends.tvm.target import Cpu, cpu_for

RELU = Activation(low=0.0)
CODES, NUMBERS = IntegerEpilogue(), IntegerEpilogue(output="float32")
EPILOGUES = [
    IntegerEpilogue(residual, output, activation)
    for residual in ("none", "uint8", "float32")
    for output, activation in (("uint8", Activation()), ("float32", Activation()), ("float32", RELU))
]
SAME = Window((3, 3), padding=(1, 1, 1, 1))
STRIDED = Window((3, 3), (2, 2), (1, 1, 1, 1))


def ways() -> dict[str, Cpu]:
    """Every way to add up products, by the processor that it is compiled for, which this machine must resemble."""
    has, here = tvm.target.codegen.target_has_features, cpu_for().target
    narrow = cpu_for("haswell") if has("avx2", here) else cpu_for("x86-64")
    found = {
        "native": cpu_for(),
        "plain": replace(cpu_for(), dot="plain"),
        "narrow plain": replace(narrow, dot="plain"),
    }
    if has("sse2", here):
        found["sse2 madd"] = cpu_for("x86-64")
    if has("avx2", here):
        found["avx2 madd"] = cpu_for("haswell")
    if has("avxvnni", here):
        found["vnni256"] = cpu_for("alderlake")
    if has("avx512bw", here):
        found["avx512 madd"] = cpu_for("skylake-avx512")
    return found


WAYS = ways()
OFTEN = ("native", "avx2 madd", "narrow plain")
"""Ways that differ most; the others are tried by the slow tests."""


@pytest.fixture(params=[pytest.param(name, marks=[] if name in OFTEN else pytest.mark.slow) for name in WAYS])
def cpu(request) -> Cpu:
    return WAYS[request.param]


def run(kernel: Kernel, cpu: Cpu, operands: list[np.ndarray]) -> np.ndarray:
    function = tvm.compile(kernel.build(cpu).with_attr("global_symbol", "main"), target=cpu.target)["main"]
    unset = 77 if kernel.output_dtype == "uint8" else np.nan
    output = tvm.runtime.tensor(np.full(kernel.output_shape, unset, dtype=kernel.output_dtype))
    function(*map(tvm.runtime.tensor, operands), output)
    return output.numpy()


def wrong(kernel: Kernel, cpu: Cpu, operands: list[np.ndarray] | None = None) -> int:
    """Elements that differ from the reference."""
    if operands is None:
        operands = kernel.example_operands(cpu, np.random.default_rng(0))
    expected, found = kernel.reference(operands), run(kernel, cpu, operands)
    assert (expected.shape, str(expected.dtype)) == (kernel.output_shape, kernel.output_dtype)
    assert len(np.unique(expected)) > 1
    return int((found != expected).sum())


def conv(lanes: int, **changes) -> IntegerConv2d:
    """A convolution of 2 x lanes channels at 9 x 13 into 3 blocks, 3 x 3."""
    fields = {
        "source": (1, 2, 9, 13, lanes),
        "span": Span(lanes // 2, 4, 0),
        "blocks": 3,
        "size": (9, 13),
        "lanes": lanes,
        "window": SAME,
    }
    return IntegerConv2d(**{**fields, **changes})


def kernels(cpu: Cpu) -> list[Kernel]:
    """Several recipes of every kind."""
    v = cpu.lanes
    pixel, map5 = Window((1, 1)), (2, 3, 7, 10, v)
    wide = v // 4  # groups of four channels in a block
    return [
        conv(v),
        *(conv(v, source=(2, 2, 5, 6, v), size=(5, 6), window=pixel, epilogue=epilogue) for epilogue in EPILOGUES),
        conv(v, window=STRIDED, size=(5, 7), epilogue=NUMBERS),
        conv(v, span=Span(wide, 4, v)),  # the second block alone
        conv(v, span=Span(wide + 1, 4, 4)) if v > 4 else conv(v, span=Span(1, 4, 4)),
        conv(v, span=Span(2, 4, None), epilogue=IntegerEpilogue("uint8")),  # a table
        conv(v, source=(1, 3, 9, 13, v), span=Span(wide + 1, 4, None)),
        conv(v, source=(1, 1, 17, 19, 4), span=Span(1, 4, 0), size=(9, 10), window=STRIDED),  # a first layer
        conv(v, source=(1, 1, 17, 19, 4), span=Span(1, 4, 0), size=(17, 19)),
        conv(v, source=(1, 2, 5, 31, v), size=(5, 31), epilogue=IntegerEpilogue("float32")),
        conv(v, window=Window((3, 1), padding=(2, 0, 2, 0), dilation=(2, 1))),
        conv(v, source=(1, 4, 1, 1, v), span=Span(v, 4, 0), blocks=5, size=(1, 1), window=pixel),
        conv(v, source=(1, 4, 7, 7, v), span=Span(v, 4, 0), blocks=8, size=(7, 7), window=pixel),
        conv(v, size=(3, 4), window=Window((3, 3), (3, 3))),  # rows and columns are left over
        conv(v, window=Window((5, 5), (1, 2), (2, 2, 2, 2)), size=(9, 7)),
        IntegerDepthwise((2, 3, 9, 13, v), (9, 13), SAME, IntegerEpilogue("uint8")),
        IntegerDepthwise((1, 3, 9, 13, v), (5, 7), STRIDED, IntegerEpilogue("float32", "float32", RELU)),
        IntegerDepthwise((1, 2, 14, 14, v), (14, 14), Window((7, 7), padding=(3, 3, 3, 3))),
        IntegerDepthwise((1, 2, 14, 14, v), (14, 14), Window((5, 5), padding=(2, 2, 2, 2)), NUMBERS),
        IntegerDepthwise((1, 2, 9, 15, v), (9, 7), Window((4, 4), (1, 2), (2, 1, 1, 1))),
        IntegerDepthwise((1, 1, 11, 11, v), (7, 7), Window((3, 3), dilation=(2, 2))),
        IntegerDepthwise((1, 2, 4, 4, v), (4, 4), SAME),
        IntegerDepthwise((1, 2, 3, 1, v), (3, 1), Window((3, 1), padding=(1, 0, 1, 0))),
        IntegerDepthwise((1, 2, 2, 2, v), (1, 1), Window((2, 2))),
        IntegerDense(1, 72, 10, v),
        IntegerDense(1, 128, 100, v, NUMBERS),
        IntegerDense(3, 96, 2 * v, v),
        IntegerDense(2, 64, 17 * v + 1, v, IntegerEpilogue(output="float32", activation=RELU)),
        MaxPool(map5, (4, 5), STRIDED, "uint8"),
        MaxPool((1, 1, 11, 11, v), (5, 5), Window((3, 3), (2, 2)), "uint8"),
        Quantise(map5),
        Quantise(map5, (1, 2, 0, 3)),
        Quantise((3, 37)),
        Quantise((3, 4 * v)),
        QuantisePlain((2, 3, 5, 6), 4),
        QuantisePlain((1, 2 * v + 3, 5, 6), v, (1, 1, 2, 0)),
        QuantisePlain((1, 3, 4, 21), 4, (0, 1, 0, 0)),
        QuantisePlain((1, 6, 3, 3), 8),
        Dequantise(map5),
        Dequantise((3, 37)),
        Framed(map5, (1, 2, 0, 3)),
        Framed((1, 1, 5, 6, 4), (0, 1, 2, 0)),
        Gather(map5, 2, (7, 10), dtype="uint8"),
        Gather(map5, 2, (8, 4), offset=(-1, 1), stride=(1, 2), dtype="uint8"),
    ]


def test_every_kernel_is_exact(cpu):
    counts = {kernel.recipe: wrong(kernel, cpu) for kernel in kernels(cpu)}
    assert {recipe: count for recipe, count in counts.items() if count} == {}


@pytest.mark.parametrize(("code", "weight"), [(255, -128), (255, 127), (1, -128)])
def test_the_largest_products_neither_saturate_nor_overflow(cpu, code, weight):
    for kernel, products in (
        (conv(cpu.lanes, epilogue=NUMBERS), 18 * cpu.lanes),
        (IntegerDepthwise((1, 2, 14, 14, cpu.lanes), (14, 14), Window((7, 7), padding=(3, 3, 3, 3)), NUMBERS), 49),
        (IntegerDense(1, 400, 33, cpu.lanes, NUMBERS), 400),
    ):
        operands = kernel.example_operands(cpu, np.random.default_rng(0))
        operands[0][:], operands[1][:], operands[2][:] = code, weight, 1.0
        if isinstance(kernel, IntegerDepthwise):
            operands[1] = kernel.pack(kernel.quads.unpack(operands[1]))
        found = run(kernel, cpu, operands)
        np.testing.assert_array_equal(found, kernel.reference(operands))
        operands[3][:] = 0.0
        extreme = run(kernel, cpu, operands)
        assert np.abs(extreme).max() == abs(code * weight * products)


def test_most_products_are_as_many_as_an_int32_holds():
    assert MOST_PRODUCTS * 255 * 128 <= 2**31 - 1 < (MOST_PRODUCTS + 1) * 255 * 128
    IntegerDense(1, MOST_PRODUCTS // 4 * 4, 8, 16)
    with pytest.raises(ValueError, match="int32 holds sums of at most 65793"):
        IntegerDense(1, MOST_PRODUCTS // 4 * 4 + 4, 8, 16)


def test_what_no_kernel_can_do_is_refused():
    with pytest.raises(ValueError, match="limits, not an activation"):
        IntegerEpilogue(activation=RELU)
    with pytest.raises(ValueError, match="four at a time, not 2"):
        conv(16, span=Span(2, 2, 0))
    with pytest.raises(ValueError, match="multiple of 4 codes, not 30"):
        IntegerDense(1, 30, 8, 16)
    with pytest.raises(ValueError, match="four channels at a time, not in blocks of 6"):
        QuantisePlain((1, 6, 3, 3), 6)


# ---- rounding


def to_float32(exact: Fraction) -> np.float32:
    """The nearest float32, half to even, by integers alone."""
    if exact == 0:
        return np.float32(0)
    exponent = math.floor(math.log2(abs(exact)))
    while Fraction(2) ** (exponent + 1) <= abs(exact):
        exponent += 1
    while Fraction(2) ** exponent > abs(exact):
        exponent -= 1
    unit = Fraction(2) ** (exponent - 23)
    return np.float32(float(round(exact / unit) * unit))  # Fractions round half to even


def test_fused_multiply_add_is_that_of_exact_numbers(cpu):
    generator = np.random.default_rng(0)
    a = generator.integers(-(2**24), 2**24, 3000).astype(np.float32)
    b = generator.standard_normal(3000).astype(np.float32) * np.float32(2.0) ** generator.integers(-30, 5, 3000)
    b = b.astype(np.float32)
    c = (-a.astype(np.float64) * b).astype(np.float32)  # cancels all but what rounding would lose
    c[1000:] = generator.standard_normal(2000) * np.abs(c[1000:])
    # halfway between two float32, but for a bit that float64 loses: rounding twice goes wrong
    a[:500], b[:500] = np.float32(1 + 2**-12), np.float32(1 + 2**-12)
    c[:500] = np.float32(2.0) ** generator.integers(-90, -30, 500) * np.where(generator.integers(0, 2, 500), 1, -1)
    expected = [
        to_float32(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)))
        for x, y, z in zip(a, b, c, strict=True)
    ]
    np.testing.assert_array_equal(exact_fused(a, b, c), np.array(expected, dtype=np.float32))
    twice = (a.astype(np.float64) * b + c).astype(np.float32)
    assert (twice != exact_fused(a, b, c)).any()


@pytest.mark.parametrize("zero", [0, 128, 255])
def test_numbers_become_codes_half_to_even_and_back(cpu, zero):
    values = np.concatenate([np.arange(-600, 600) / 4, [-1e30, -1e9, 1e9, 1e30]]).astype(np.float32)[None]
    grid = np.array([2.0, zero, 0, 255], dtype=np.float32)
    codes = run(Quantise(values.shape), cpu, [values, grid])
    np.testing.assert_array_equal(codes, np.clip(np.round(values * 2 + zero), 0, 255))
    affine = np.array([0.5, -0.5 * zero], dtype=np.float32)
    back = run(Dequantise(values.shape), cpu, [codes, affine])
    np.testing.assert_array_equal(back, (codes.astype(np.float32) - zero) / 2)


@pytest.mark.parametrize("zero", [0, 100.4])
def test_a_border_holds_the_code_of_zero_and_what_is_behind_the_channels_is_zero(cpu, zero):
    kernel = QuantisePlain((1, 3, 2, 2), 4, (1, 2, 3, 4))
    grid = np.array([10.0, zero, 0, 255], dtype=np.float32)
    out = run(kernel, cpu, [np.full((1, 3, 2, 2), 5.0, dtype=np.float32), grid])
    assert out.shape == (1, 1, 6, 8, 4)
    assert (out[..., 3] == 0).all()
    inside = np.zeros((6, 8), dtype=bool)
    inside[1:3, 2:4] = True
    assert (out[0, 0, inside, :3] == round(50 + zero)).all()
    assert (out[0, 0, ~inside, :3] == round(zero)).all()


# ---- recipes, traffic, threads


def test_recipes_tell_kernels_apart():
    every = kernels(cpu_for("skylake-avx512"))
    assert len({kernel.recipe for kernel in every}) == len(set(every)) == len(every)
    assert conv(16, epilogue=IntegerEpilogue("uint8")).recipe == (
        "conv2d_u8(source=(1,2,9,13,16),span=Span(steps=8,width=4,start=0),blocks=3,size=(9,13),lanes=16,"
        "window=Window(kernel=(3,3),padding=(1,1,1,1)),epilogue=IntegerEpilogue(residual=uint8))"
    )
    assert MaxPool((1, 1, 4, 4, 16), (2, 2), Window((2, 2), (2, 2))).recipe == (
        "max_pool(source=(1,1,4,4,16),size=(2,2),window=Window(kernel=(2,2),stride=(2,2)))"
    )


def test_traffic_counts_bytes():
    assert conv(16).traffic == 32 * 9 * 13 + 48 * 32 * 9 + 4 * (48 + 48 + 2) + 48 * 9 * 13
    assert Dequantise((2, 32)).traffic == 64 + 4 * 2 + 4 * 64
    assert conv(16, epilogue=IntegerEpilogue("float32", "float32")).traffic == (
        32 * 9 * 13 + 48 * 32 * 9 + 4 * (48 + 48) + 4 * (2 * 48 * 9 * 13 + 1)
    )


def large_kernels(cpu: Cpu) -> list[Kernel]:
    """One of each kind that is spread over threads."""
    v = cpu.lanes
    large = (1, 4, 66, 64, v)
    return [
        conv(v, source=(1, 4, 31, 31, v), span=Span(v, 4, 0), size=(31, 31), blocks=5),
        conv(v, source=(1, 12, 9, 8, v), span=Span(3 * v, 4, 0), size=(9, 8), blocks=12),  # few rows, many channels
        IntegerDepthwise(large, (66, 64), SAME),
        IntegerDepthwise((1, 4, 67, 64, v), (34, 32), Window((5, 5), (2, 2), (2, 2, 2, 2))),
        IntegerDense(1, 1024, 1000, v),
        MaxPool(large, (33, 32), STRIDED, "uint8"),
        Quantise(large),
        QuantisePlain((1, 64, 66, 64), v, (1, 1, 1, 1)),
        Dequantise(large),
        Framed(large, (1, 1, 1, 1)),
    ]


@pytest.mark.parametrize("threads", [2, 3])
def test_several_threads_compute_the_same(threads):
    # TVM starts its threads once a process, so they need one of their own; work is large enough that they are used
    code = f"""
import tests.unit.test_tvm_integer_kernels as kernels_
from backends.tvm.target import cpu_for
cpu = cpu_for(threads={threads})
for kernel in kernels_.large_kernels(cpu):
    assert kernel.work >= 1 << 18, kernel.recipe
    assert "parallel" in kernel.build(cpu).script(), kernel.recipe
    assert kernels_.wrong(kernel, cpu) == 0, kernel.recipe
"""
    environment = {**os.environ, "TVM_NUM_THREADS": str(threads)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
