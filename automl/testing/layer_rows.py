"""Layers of every kind as Hypothesis draws them, and the same layers with something of them gone."""

from dataclasses import replace
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from backends.accelerators.workloads import Workload, Zeros, of_layer
from search_spaces.factorisations import FACTORISATIONS, factors
from search_spaces.layers import FIXED, LayerSpec

Pair = tuple[Workload, Workload]
"""A layer, and the same with less of something."""

CHANNELS = st.integers(1, 40) | st.sampled_from([48, 64, 96, 129, 256, 500])
SIZES = st.integers(1, 16) | st.sampled_from([28, 56, 65])
KERNELS = st.sampled_from([1, 1, 2, 3, 3, 5, 7, 11])
DENSITIES = st.sampled_from([0.01, 0.1, 0.25, 0.5, 0.9, 0.99]) | st.floats(0.01, 1.0)
WINDOWS = (2, 4, 8)


def rows_of(weight_bits: int, activation_bits: int) -> st.SearchStrategy[Workload]:
    """Convolutions (grouped, depthwise, strided, dilated), linear layers, steps of recurrent ones, products of
    attention; of up to so many bits, dense or with zeros."""
    shapes = st.one_of(_convolutions(), _linear(), _recurrent(), _attention())
    return _with_numbers(shapes, weight_bits, activation_bits)


@st.composite
def _convolutions(draw: st.DrawFn) -> Workload:
    kind = draw(st.sampled_from(["dense", "dense", "grouped", "depthwise"]))
    groups = draw(st.integers(2, 4) if kind == "grouped" else CHANNELS) if kind != "dense" else 1
    axes: dict[str, int] = {}
    for axis in ("height", "width"):
        kernel, stride, dilation = draw(KERNELS), draw(st.integers(1, 4)), draw(st.sampled_from([1, 1, 1, 2, 3]))
        size, span = draw(SIZES), (kernel - 1) * dilation + 1
        border = draw(st.integers(0, span - 1))  # of both sides together
        axes |= {
            f"kernel_{axis}": kernel,
            f"stride_{axis}": stride,
            f"dilation_{axis}": dilation,
            f"in_{axis}": max(1, (size - 1) * stride + span - border),
            f"out_{axis}": size,
        }
    channels = (1, 1) if kind == "depthwise" else (draw(CHANNELS), draw(CHANNELS))
    batch = draw(st.sampled_from([1, 1, 2, 3, 16]))
    return Workload(batch=batch, in_channels=channels[0], out_channels=channels[1], groups=groups, **axes)


def _linear() -> st.SearchStrategy[Workload]:
    def made(inputs: int, outputs: int, rows: int, batch: int) -> Workload:
        return Workload(in_channels=inputs, out_channels=outputs, in_height=rows, out_height=rows, batch=batch)

    wide = CHANNELS | st.sampled_from([1000, 4096])
    return st.builds(made, wide, wide, st.sampled_from([1, 1, 7, 197]), st.sampled_from([1, 2, 16]))


def _recurrent() -> st.SearchStrategy[Workload]:
    def made(hidden: int, gates: int, steps: int, batch: int) -> Workload:
        return Workload(in_channels=hidden, out_channels=gates * hidden, steps=steps, batch=batch)

    return st.builds(made, CHANNELS, st.sampled_from([1, 3, 4]), st.integers(1, 40), st.integers(1, 4))


def _attention() -> st.SearchStrategy[Workload]:
    def made(heads: int, tokens: int, depth: int, columns: int, batch: int) -> Workload:
        sizes = {"in_channels": depth, "out_channels": columns, "in_height": tokens, "out_height": tokens}
        return Workload(groups=heads, batch=batch, product=1, **sizes)

    return st.builds(made, st.integers(1, 12), SIZES, CHANNELS, CHANNELS, st.integers(1, 4))


@st.composite
def _with_numbers(
    draw: st.DrawFn, shapes: st.SearchStrategy[Workload], weight_bits: int, activation_bits: int
) -> Workload:
    row = draw(shapes)
    zeros = Zeros.NONE if row.product else draw(st.sampled_from(Zeros))
    return replace(
        row,
        weight_bits=draw(st.integers(1, weight_bits)),
        activation_bits=draw(st.integers(1, activation_bits)),
        activation_density=draw(st.just(1.0) | DENSITIES),
        **draw(_zeros(zeros)),
    )


@st.composite
def _zeros(draw: st.DrawFn, kind: Zeros) -> dict[str, Any]:
    """Columns of the zeros among the weights."""
    if kind == Zeros.NONE:
        return {"zeros": kind, "weight_density": 1.0}
    if kind == Zeros.WINDOWS:
        window = draw(st.sampled_from(WINDOWS))
        return {"zeros": kind, "window": window, "weight_density": draw(st.integers(1, window)) / window}
    return {"zeros": kind, "weight_density": draw(DENSITIES)}


@st.composite
def shrunk_pairs(draw: st.DrawFn, rows: st.SearchStrategy[Workload]) -> Pair:
    """A layer, and the same with fewer bits, channels, groups, or numbers that are not zero."""
    row = draw(rows)
    counts = ("weight_bits", "activation_bits", "in_channels", "out_channels", "groups")
    shrinking = [name for name in counts if getattr(row, name) > 1]
    if row.product == 0:
        shrinking.append("weight_density")
    what = draw(st.sampled_from([*shrinking, "activation_density"]))
    if what in counts:
        most = getattr(row, what) - 1
        return row, replace(row, **{what: draw(st.integers(1, most) | st.just(most))})
    if what == "activation_density":
        return row, replace(row, activation_density=row.activation_density * draw(DENSITIES))
    if row.zeros == Zeros.NONE:
        return row, replace(row, **draw(st.sampled_from(Zeros).flatmap(_zeros)))
    if row.zeros == Zeros.WINDOWS:
        left = round(row.weight_density * row.window)
        return row, replace(row, weight_density=draw(st.integers(1, left)) / row.window)
    return row, replace(row, weight_density=row.weight_density * draw(DENSITIES))


@st.composite
def factorised_pairs(draw: st.DrawFn, weight_bits: int, activation_bits: int) -> tuple[list[Workload], list[Workload]]:
    """The parts of a layer, and those of the same layer at a lower rank."""
    inputs, outputs = draw(CHANNELS), draw(CHANNELS)
    method = draw(st.sampled_from(sorted(FACTORISATIONS)))
    linear = method == "svd" and draw(st.booleans())
    size, kernel = draw(SIZES), draw(st.sampled_from([1, 3, 5]))

    def both(value: int) -> tuple[int, ...]:
        return () if linear else (value, value)

    spec = LayerSpec(
        "layer",
        "linear" if linear else "conv",
        inputs,
        outputs,
        kernel=both(kernel),
        stride=both(1),
        padding=both(kernel // 2),
        dilation=both(1),
        groups=1,
        input_size=both(size),
        output_size=both(size),
        positions=draw(st.sampled_from([1, 7])) if linear else size * size,
        bias=False,
        in_extent=FIXED,
        out_extent=FIXED,
    )
    found = FACTORISATIONS[method]
    assume(not found.unfit(spec))
    high = found.usable(spec, tuple(draw(st.integers(1, most)) for most in found.full(spec)))
    low = found.usable(spec, tuple(draw(st.integers(1, most)) for most in high))
    assume(all(one <= other for one, other in zip(low, high, strict=True)))
    bits = draw(st.integers(1, weight_bits)), draw(st.integers(1, activation_bits))
    chains = []
    for rank in (high, low):
        parts = factors(spec, method, rank, must_save=False)
        chains.append(
            [
                replace(
                    of_layer(part),
                    weight_bits=bits[0],
                    activation_bits=bits[1],
                    reads_part=int(part is not parts[0]),
                    feeds_part=int(part is not parts[-1]),
                )
                for part in parts
            ]
        )
    return chains[0], chains[1]
