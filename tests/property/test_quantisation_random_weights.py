"""Whatever the weights, the format and the mask: what `quantise` promises."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from automl.compression.quantisation import WEIGHT_METHODS, calibrate, dequantise, quantise
from search_spaces.number_formats import SCHEMES, NumberFormat

SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, max_side=5)
NUMBERS = st.floats(-6e4, 6e4, width=32)


@st.composite
def formats(draw: st.DrawFn, activations: bool = False) -> NumberFormat:
    scheme = draw(st.sampled_from([name for name, known in SCHEMES.items() if known.activations or not activations]))
    bits = draw(st.integers(SCHEMES[scheme].least_bits, SCHEMES[scheme].most_bits))
    if activations:
        return NumberFormat(bits, scheme, "tensor")
    return NumberFormat(bits, scheme, draw(st.sampled_from(["tensor", "channel", "group:1", "group:3", "group:64"])))


@settings(max_examples=100)
@given(st.data(), formats(), st.sampled_from(WEIGHT_METHODS))
def test_weights(data: st.DataObject, format: NumberFormat, method: str) -> None:
    shape = data.draw(SHAPES)
    weight = torch.from_numpy(data.draw(arrays.arrays(np.float32, shape, elements=NUMBERS)))
    mask = torch.from_numpy(data.draw(arrays.arrays(np.bool_, shape)))
    before = weight.clone()
    chance = torch.Generator().manual_seed(0) if data.draw(st.booleans()) else None
    found = quantise(weight, format, mask=mask, generator=chance, method=method)
    assert torch.equal(weight, before)
    assert torch.isfinite(found.values).all()
    assert not found.values[~mask].any()
    assert int(found.codes.min()) >= 0
    assert int(found.codes.max()) < 2**format.bits
    assert torch.equal(dequantise(found.codes, found.side, format, mask), found.values)
    assert all(len(each) == format.sets(shape) for each in found.side.values())
    # no weight grows to more than twice the largest (a step of asymmetric numbers in one bit)
    largest = float((weight * mask).abs().max())
    assert float(found.values.abs().max()) <= 2 * largest + 1e-30 or format.scheme == "dorefa"


@settings(max_examples=100)
@given(st.data(), formats(activations=True), st.sampled_from(["min_max", "percentile", "mse", "entropy"]))
def test_activations(data: st.DataObject, format: NumberFormat, method: str) -> None:
    numbers = st.floats(0, 6e4, width=32) if format.scheme == "dorefa" else NUMBERS
    x = torch.from_numpy(data.draw(arrays.arrays(np.float32, SHAPES, elements=numbers)))
    module = calibrate(x, format, method)
    y = module(x)
    assert y.shape == x.shape
    assert torch.isfinite(y).all()
    assert not y[x == 0].any()
    assert len(y.unique()) <= 2**format.bits
    assert torch.equal(module.train()(x), y)
    # monotone: order is never reversed
    order = x.flatten().argsort(stable=True)
    assert (y.flatten()[order].diff() >= 0).all()
