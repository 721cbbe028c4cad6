"""Random layers in 8 bits, compiled, against their references, bit for bit."""

import numpy as np
import tvm
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from backends.tvm.kernels.base import Kernel, Span, Window
from backends.tvm.kernels.integer.convolution import IntegerConv2d
from backends.tvm.kernels.integer.dense import IntegerDense
from backends.tvm.kernels.integer.depthwise import IntegerDepthwise, Quads
from backends.tvm.kernels.integer.epilogue import IntegerEpilogue
from backends.tvm.target import cpu_for

FEW = settings(max_examples=15, derandomize=True)
CPU = cpu_for()
EPILOGUES = [
    IntegerEpilogue(residual, output) for residual in ("none", "uint8", "float32") for output in ("uint8", "float32")
]


def check(kernel: Kernel) -> None:
    operands = kernel.example_operands(CPU, np.random.default_rng(0))
    function = tvm.compile(kernel.build(CPU).with_attr("global_symbol", "main"), target=CPU.target)["main"]
    output = tvm.runtime.tensor(np.zeros(kernel.output_shape, dtype=kernel.output_dtype))
    function(*map(tvm.runtime.tensor, operands), output)
    np.testing.assert_array_equal(output.numpy(), kernel.reference(operands))


def pairs(least: int, most: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(least, most), st.integers(least, most))


@st.composite
def windows(draw):
    """A window, the size of a map, and that of what the window makes of it."""
    top, left = draw(pairs(0, 2))
    bottom, right = draw(pairs(0, 2))
    window = Window(draw(pairs(1, 5)), draw(pairs(1, 3)), (top, left, bottom, right), draw(pairs(1, 2)))
    outputs = draw(st.integers(1, 9)), draw(st.integers(1, 35))
    assume(window.span(0, outputs[0]) > top and window.span(1, outputs[1]) > left)
    borders = top + bottom, left + right
    inputs = [max(1, window.span(axis, outputs[axis]) - borders[axis]) + draw(st.integers(0, 2)) for axis in (0, 1)]
    return window, tuple(inputs), outputs


@FEW
@given(windows(), st.integers(1, 3), st.integers(1, 4), st.booleans(), st.sampled_from(EPILOGUES), st.data())
def test_any_convolution(case, sources, blocks, by_table, epilogue, data):
    window, inputs, outputs = case
    lanes = CPU.lanes
    groups = sources * lanes // 4
    steps = data.draw(st.integers(1, groups))
    start = None if by_table else 4 * data.draw(st.integers(0, groups - steps))
    source, span = (data.draw(st.integers(1, 2)), sources, *inputs, lanes), Span(steps, 4, start)
    check(IntegerConv2d(source, span, blocks, outputs, lanes, window, epilogue))


@FEW
@given(windows(), st.integers(1, 2), st.integers(1, 2), st.sampled_from(EPILOGUES))
def test_any_depthwise_convolution(case, images, blocks, epilogue):
    window, inputs, outputs = case
    check(IntegerDepthwise((images, blocks, *inputs, CPU.lanes), outputs, window, epilogue))


@FEW
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 200), st.sampled_from(["uint8", "float32"]))
def test_any_dense_layer(batch, groups, outputs, output):
    check(IntegerDense(batch, 4 * groups, outputs, CPU.lanes, IntegerEpilogue(output=output)))


@given(st.integers(1, 13), st.integers(1, 4), st.integers(1, 3), st.integers(1, 20))
def test_groups_of_four_pixels_hold_every_window(kernel, stride, dilation, outputs):
    quads = Quads(Window((1, kernel), (1, stride), dilation=(1, dilation)))
    weight = np.random.default_rng(0).integers(1, 100, (2, 3, kernel, 4)).astype(np.int8)
    packed = quads.pack(weight)
    np.testing.assert_array_equal(quads.unpack(packed), weight)
    for output in range(outputs):
        first = quads.first(output, outputs)
        shift = output * stride - first
        assert 0 <= shift < quads.shifts
        taps = packed[:, :, shift].transpose(0, 1, 2, 4, 3).reshape(2, 3, 4 * quads.groups, 4)
        np.testing.assert_array_equal(taps[:, :, shift : shift + kernel], weight)
        assert (taps != 0).sum() == weight.size
    last = (outputs - 1) * stride + kernel
    if dilation == 1 and last >= 4 * quads.groups:
        assert all(0 <= quads.first(x, outputs) <= last - 4 * quads.groups for x in range(outputs))
