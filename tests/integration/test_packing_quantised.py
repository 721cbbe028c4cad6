"""Sparse, then quantised, then packed: what is unpacked is what the network computes with."""

from itertools import product

import pytest
import torch

from automl.compression.packing import pack_weights, unpack_weights
from automl.compression.quantisation import dequantise, quantise
from automl.compression.sparsity import magnitude, mask
from search_spaces.number_formats import SCHEMES, NumberFormat
from search_spaces.sparsity import Sparsity, stored

SHAPE = (8, 4, 3, 3)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_values_come_back_from_the_bytes_alone(scheme: str) -> None:
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    bits = {SCHEMES[scheme].least_bits, min(4, SCHEMES[scheme].most_bits), min(8, SCHEMES[scheme].most_bits)}
    sparsities = (None, Sparsity("element", 0.05), Sparsity("element", 0.9), Sparsity("2:4", 0.5), Sparsity("row", 0.5))
    for width, granularity, sparsity in product(bits, ("tensor", "channel", "group:7"), sparsities):
        if width < SCHEMES[scheme].least_bits:
            continue
        number_format = NumberFormat(width, scheme, granularity)
        stay = None if sparsity is None else mask(magnitude(weight), sparsity)
        found = quantise(weight, number_format, mask=stay)
        packed = pack_weights(found.codes, number_format, sparsity, mask=stay, side=found.side)
        expected = stored(SHAPE, width, sparsity, number_format.zero).bits + number_format.side_bits(SHAPE)
        assert len(packed) == -(-expected // 8)
        again = unpack_weights(packed, SHAPE, number_format, sparsity)
        values = dequantise(again.weights, again.side, number_format, again.mask)
        assert torch.equal(values, found.values), (width, granularity, sparsity)
