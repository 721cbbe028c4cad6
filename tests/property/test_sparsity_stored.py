"""Any mask of any shape: counts are the arithmetic's, bytes are the promised ones, and everything comes back."""

import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from automl.compression.packing import pack_weights, unpack_weights
from automl.compression.sparsity import mask
from search_spaces.errors import InputError
from search_spaces.number_formats import SCALE_BITS, NumberFormat
from search_spaces.sparsity import Sparsity, sizes, stored

shapes = st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple)
PATTERNS = ["element", "row", "column", "kernel", "filter", "block:2x2", "block:1x3", "1:2", "2:4", "3:3"]


@settings(max_examples=150)
@given(
    shapes,
    st.sampled_from(PATTERNS),
    st.floats(0.0, 1.0, exclude_max=True),
    st.integers(1, 16),
    st.booleans(),
    st.integers(0, 99),
)
def test_every_mask_is_counted_and_stored_as_promised(
    shape: tuple[int, ...], pattern: str, share: float, bits: int, by_chance: bool, seed: int
) -> None:
    if ":" in pattern and pattern[0].isdigit():
        n, m = map(int, pattern.split(":"))
        share = 1 - n / m
    sparsity = Sparsity(pattern, share)
    generator = torch.Generator().manual_seed(seed)
    # many equal scores, too
    scores = torch.rand(shape, generator=generator) if by_chance else torch.randint(3, shape, generator=generator)
    try:
        stay = mask(scores, sparsity)
    except InputError:
        reject()
    assert int(stay.sum()) == sparsity.nonzeros(shape)
    number_format = NumberFormat(bits, "dorefa", "tensor")
    codes = torch.randint(1 << bits, shape, generator=generator).masked_fill(~stay, 0)
    side = {"scale": torch.rand(1, generator=generator)}
    promised = sizes(shape, bits, sparsity, has_zero=False)
    for form, size in promised.items():
        packed = pack_weights(codes, number_format, sparsity, mask=stay, side=side, form=form)
        assert len(packed) == -(-(size + SCALE_BITS) // 8)
        again = unpack_weights(packed, shape, number_format, sparsity, form=form)
        assert torch.equal(again.weights, codes)
        assert form == "dense" or torch.equal(again.mask, stay)
        assert torch.equal(again.side["scale"], side["scale"])
    assert stored(shape, bits, sparsity, has_zero=False).bits == min(promised.values())
    assert "csr" not in promised or promised["run_length"] <= promised["csr"]
