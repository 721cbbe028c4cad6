"""Stored bytes against buffers really packed, and the structure of CSR against SciPy's."""

import numpy as np
import pytest
import torch
from scipy.sparse import bsr_matrix, csr_matrix

from automl.compression.packing import pack_weights
from automl.compression.packing.bits import BitReader
from automl.compression.sparsity import magnitude, mask
from search_spaces.number_formats import NumberFormat
from search_spaces.sparsity import Sparsity, sizes, stored, width_of

SHAPE = (16, 8, 3, 3)
SPARSITIES = [
    *(Sparsity("element", share) for share in (0.0, 0.01, 0.3, 0.5, 0.7, 0.9, 0.99)),
    *(Sparsity(pattern, 0.6) for pattern in ("row", "column", "kernel", "filter", "block:4x4", "block:1x9")),
    *(Sparsity(f"{n}:{m}", 1 - n / m) for n, m in ((2, 4), (1, 4), (4, 8), (1, 8), (8, 8))),
]


@pytest.mark.parametrize("sparsity", SPARSITIES, ids=str)
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16, 32])
def test_the_form_that_is_chosen_is_the_smallest_of_all_that_are_packed(sparsity: Sparsity, bits: int) -> None:
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    stay = mask(magnitude(weight), sparsity)
    number_format = None if bits == 32 else NumberFormat(bits, "dorefa", "tensor")
    values = torch.ones_like(weight) if bits == 32 else torch.ones(SHAPE, dtype=torch.int64)
    values = values.masked_fill(~stay, 0)
    side = {} if bits == 32 else {"scale": torch.ones(1)}
    has_zero = bits == 32
    packed = {
        form: len(pack_weights(values, number_format, sparsity, mask=stay, side=side, form=form))
        for form in sizes(SHAPE, bits, sparsity, has_zero)
    }
    chosen = stored(SHAPE, bits, sparsity, has_zero)
    assert packed[chosen.form] == min(packed.values())
    assert packed[chosen.form] == -(-(chosen.bits + 32 * len(side)) // 8)
    assert packed[chosen.form] == len(pack_weights(values, number_format, sparsity, mask=stay, side=side))


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("pattern", ["element", "block:2x3"])
def test_csr_is_scipys(pattern: str, share: float) -> None:
    shape, sparsity = (10, 24), Sparsity(pattern, share)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    stay = mask(magnitude(weight), sparsity)
    weight = weight.masked_fill(~stay, 0.0)
    dense = weight.numpy()
    theirs = csr_matrix(dense) if pattern == "element" else bsr_matrix(dense, blocksize=(2, 3))
    theirs.eliminate_zeros()
    theirs.sort_indices()
    rows, columns = sparsity.grid(shape)
    left = len(theirs.indices)
    reader = BitReader(pack_weights(weight, None, sparsity, mask=stay, form="csr"))
    assert reader.take(rows + 1, width_of(left)).tolist() == theirs.indptr.tolist()
    assert reader.take(left, width_of(columns - 1)).tolist() == theirs.indices.tolist()
    values = reader.take(theirs.data.size, 32).astype(np.uint32).view(np.float32)
    assert np.array_equal(values, theirs.data.ravel())


def test_run_lengths_are_near_the_least_that_any_index_can_be() -> None:
    """Shannon's bound for the places of so many atoms, and never more than the bitmap or CSR."""
    for left in range(1, 4096, 7):
        sparsity = Sparsity("element", 1 - left / 4096)
        found = sizes((64, 64), 0, sparsity)
        share = left / 4096
        least = -4096 * (share * np.log2(share) + (1 - share) * np.log2(1 - share))
        assert found["run_length"] <= min(found["bitmap"], found["csr"])
        assert found["run_length"] <= least * 1.2 + 16 or found["run_length"] == found["bitmap"]
