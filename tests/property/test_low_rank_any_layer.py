"""Any convolution: full rank is the layer, the parts are those counted, the output has its shape."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from automl.compression.low_rank import METHODS, factorise, layer_spec
from search_spaces.factorisations import FACTORISATIONS, factors


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Conv2d:
    """Small, of any kernel, stride, padding and dilation."""
    kernel = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    same = draw(st.booleans())
    both = st.tuples(st.integers(1, 3), st.integers(1, 3))
    conv = nn.Conv2d(
        draw(st.integers(1, 7)),
        draw(st.integers(1, 7)),
        kernel,
        stride=1 if same else draw(both),
        padding="same" if same else (draw(st.integers(0, 3)), draw(st.integers(0, 3))),
        dilation=draw(both),
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "replicate", "circular"])),
        dtype=torch.float64,
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return conv


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@settings(max_examples=60, derandomize=True)
@given(conv=convolutions(), method=st.sampled_from(sorted(METHODS)), data=st.data())
def test_any_convolution(conv: nn.Conv2d, method: str, data: st.DataObject) -> None:
    spec = layer_spec(conv)
    full = FACTORISATIONS[method].full(spec)
    x = torch.randn(2, conv.in_channels, 11, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = conv(x)
    found = factorise(conv, method, full, must_save=False)(x)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-9)

    rank = FACTORISATIONS[method].usable(spec, tuple(data.draw(st.integers(1, most)) for most in full))
    built = factorise(conv, method, rank, must_save=False)
    counted = factors(spec, method, rank, must_save=False)
    assert [tuple(part.weight.shape) for part in built] == [part.weight_shape for part in counted]
    assert built(x).shape == expected.shape
