"""Quantisers of what layers read have names of their own."""

from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from automl.compression.structure import QUANTISERS, quantiser_name

PARTS = st.text("_ua0", min_size=1, max_size=5)
LAYERS = st.lists(PARTS, min_size=1, max_size=3).map(".".join)


@settings(max_examples=500, derandomize=True)
@given(st.sets(LAYERS, min_size=2, max_size=30))
def test_no_two_layers_share_a_quantiser(layers: set[str]) -> None:
    names = {quantiser_name(layer) for layer in layers}
    assert len(names) == len(layers)
    holder = nn.Module()
    for name in names:
        holder.add_module(name.removeprefix(f"{QUANTISERS}."), nn.Identity())  # refuses dots
