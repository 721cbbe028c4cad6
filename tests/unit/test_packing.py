"""Packed weights: every form, number format and granularity, to the byte."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from automl.compression.packing import FORMS, Form, pack_weights, unpack_weights
from automl.compression.packing.bits import BitReader, BitWriter
from automl.compression.sparsity import magnitude, mask
from automl.testing.sparsity import FormConformance
from search_spaces.errors import InputError
from search_spaces.layers import FIXED, LayerSpec
from search_spaces.number_formats import SCHEMES, NumberFormat
from search_spaces.sparsity import Sparsity


class TestBitmap(FormConformance):
    form = "bitmap"


class TestRunLength(FormConformance):
    form = "run_length"


class TestCsr(FormConformance):
    form = "csr"


class TestNOfM(FormConformance):
    form = "n:m"
    cases = (
        (Sparsity("2:4", 0.5), (8, 16)),
        (Sparsity("1:3", 2 / 3), (4, 3, 3, 3)),
        (Sparsity("4:4", 0.0), (2, 4)),
        (Sparsity("1:1", 0.0), (2, 3)),
    )


def test_the_kit_of_forms_catches_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    right = FORMS["bitmap"]
    backwards = Form(lambda kept, writer: right.write(kept[::-1], writer), right.read)
    longer = Form(lambda kept, writer: (right.write(kept, writer), writer.add([0] * 9, 1))[0], right.read)
    for wrong in (backwards, longer):
        monkeypatch.setitem(FORMS, "bitmap", wrong)
        with pytest.raises(AssertionError, match="'bitmap'"):
            TestBitmap().test_size_and_round_trip()


def layer(shape: tuple[int, ...], number_format: NumberFormat | None, sparsity: Sparsity | None) -> LayerSpec:
    kernel = shape[2:]
    return LayerSpec(
        "layer", "conv" if kernel else "linear", shape[1], shape[0], kernel, (1,) * len(kernel), (0,) * len(kernel),
        (1,) * len(kernel), 1, kernel, (1,) * len(kernel), 1, True, FIXED, FIXED,
        weight_format=number_format, sparsity=sparsity,
    )  # fmt: skip


def side_data(shape: tuple[int, ...], number_format: NumberFormat, generator: torch.Generator) -> dict[str, Tensor]:
    """Of every kind that schemes have, with the extremes of its range."""
    sets, bits = number_format.sets(shape), number_format.bits
    kinds = {
        "scale": lambda: torch.randn(sets, generator=generator),
        "codebook": lambda: torch.randn(sets, 1 << bits, generator=generator),
        "zero_point": lambda: torch.randint(1 << bits, (sets,), generator=generator).index_fill_(
            0, torch.tensor([0]), (1 << bits) - 1
        ),
        "exponent": lambda: torch.randint(-128, 128, (sets,), generator=generator).index_fill_(
            0, torch.tensor([0]), -128
        ),
    }
    return {name: kinds[name]() for name in SCHEMES[number_format.scheme].side}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_format_takes_the_bytes_of_the_layer_and_comes_back(scheme: str) -> None:
    generator = torch.Generator().manual_seed(0)
    widths = sorted({SCHEMES[scheme].least_bits, 3, SCHEMES[scheme].most_bits})
    widths = [bits for bits in widths if SCHEMES[scheme].least_bits <= bits <= SCHEMES[scheme].most_bits]
    patterns = (None, ("element", 0.3), ("element", 0.95), ("kernel", 0.5), ("block:2x3", 0.5), ("1:4", 0.75))
    for bits, granularity, pattern in product(widths, ("tensor", "channel", "group:5"), patterns):
        shape, number_format = (6, 4, 3, 3), NumberFormat(bits, scheme, granularity)
        sparsity = None if pattern is None else Sparsity(*pattern)
        spec = layer(shape, number_format, sparsity)
        stay = None
        codes = torch.randint(1 << bits, shape, generator=generator)
        if sparsity is not None:
            stay = mask(torch.rand(shape, generator=generator), sparsity)
            codes = codes.masked_fill(~stay, 0)
        side = side_data(shape, number_format, generator)
        packed = pack_weights(codes, number_format, sparsity, mask=stay, side=side)
        assert len(packed) == spec.weight_bytes, (bits, granularity, pattern)
        again = unpack_weights(packed, shape, number_format, sparsity)
        assert torch.equal(again.weights, codes)
        assert stay is None or spec.stored.form == "dense" or torch.equal(again.mask, stay)
        assert list(again.side) == list(side)
        assert all(torch.equal(again.side[name], side[name]) for name in side)


@pytest.mark.parametrize("pattern", [None, ("element", 0.5), ("element", 0.97), ("column", 0.5), ("2:4", 0.5)])
def test_float32_weights_come_back_bit_for_bit(pattern: tuple[str, float] | None) -> None:
    weight = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[0, 0, 0] = torch.tensor([-0.0, torch.finfo(torch.float32).tiny / 2, torch.finfo(torch.float32).max])
    sparsity = None if pattern is None else Sparsity(*pattern)
    stay = None if sparsity is None else mask(magnitude(weight), sparsity)
    weight = weight if stay is None else weight.masked_fill(~stay, 0.0)
    packed = pack_weights(weight, None, sparsity, mask=stay)
    assert len(packed) == layer(tuple(weight.shape), None, sparsity).weight_bytes
    again = unpack_weights(packed, weight.shape, None, sparsity)
    assert torch.equal(again.weights.view(torch.int32), weight.view(torch.int32))
    assert stay is None or torch.equal(again.mask, stay)


def test_the_layout_is_the_one_that_is_documented() -> None:
    """By hand: scales, then the index, then codes, least significant bits first."""
    codes, stay = torch.tensor([[5, 0, 0, 2]]), torch.tensor([[True, False, False, True]])
    number_format, sparsity = NumberFormat(3, "symmetric", "tensor"), Sparsity("element", 0.5)
    packed = pack_weights(codes, number_format, sparsity, mask=stay, side={"scale": torch.tensor([1.5])}, form="bitmap")
    assert packed[:4] == np.float32(1.5).tobytes()
    assert packed[4:] == bytes([0b0101_1001, 0b01])  # bitmap 1001 read upwards, 101 for 5, 010 for 2
    zero_point = {"scale": torch.tensor([1.5]), "zero_point": torch.tensor([6])}
    packed = pack_weights(codes, NumberFormat(3, "asymmetric", "tensor"), side=zero_point)
    assert packed[4:] == bytes([0b00_101_110, 0b0010_000_0 | 0b0000_0000])


def test_numbers_of_any_width_follow_each_other() -> None:
    writer = BitWriter()
    writer.add([5, 2], 3)
    writer.add([], 7)
    writer.add([9, 9, 9], 0)
    writer.add([-3, 3], 4)
    writer.add([(1 << 32) - 1, 1], 32)
    reader = BitReader(writer.to_bytes())
    assert reader.take(2, 3).tolist() == [5, 2]
    assert reader.take(3, 0).tolist() == [0, 0, 0]
    assert reader.take(2, 4, signed=True).tolist() == [-3, 3]
    assert reader.take(2, 32).tolist() == [(1 << 32) - 1, 1]
    assert reader.take(2, 1).tolist() == [0, 0]
    with pytest.raises(InputError, match="end after 80 bits"):
        reader.take(1, 1)
    assert BitWriter().to_bytes() == b""


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"weights": torch.full((2, 4), 8)}, "codes of 3 bits are whole numbers from 0 to 7"),
        ({"weights": torch.full((2, 4), -1)}, "codes of 3 bits are whole numbers from 0 to 7"),
        ({"weights": torch.zeros(2, 4)}, "codes of 3 bits are whole numbers"),
        ({"mask": None}, "need the mask"),
        ({"mask": torch.ones(2, 4, dtype=torch.bool)}, "none of 'element' with 4 of 8 atoms zero"),
        ({"mask": torch.ones(2, 4)}, "a mask is bool"),
        ({"mask": torch.ones(4, 2, dtype=torch.bool)}, "a mask is bool like its weights"),
        ({"side": None}, "side data of 'asymmetric' is scale, zero_point, got none"),
        ({"side": {"scale": torch.ones(2), "zero_point": torch.tensor([8, 0])}}, "whole numbers from 0 to 7"),
        ({"side": {"scale": torch.ones(2), "zero_point": torch.ones(2)}}, "whole numbers from 0 to 7"),
        ({"side": {"scale": torch.ones(1), "zero_point": torch.tensor([1, 0])}}, r"'scale' of the weights is \[2\]"),
        ({"side": {"scale": torch.ones(2).double(), "zero_point": torch.tensor([1, 0])}}, "float32"),
        ({"form": "coo"}, "no form 'coo'"),
        ({"form": "n:m"}, "no form 'n:m'"),
        ({"format": None, "weights": torch.zeros(2, 4).double()}, "are float32"),
        ({"format": None, "weights": torch.ones(2, 4)}, "set them to zero"),
        ({"sparsity": Sparsity("2:4", 0.5), "mask": torch.tensor([[True] * 4, [False] * 4])}, "none of '2:4'"),
        ({"sparsity": Sparsity("row", 0.5), "mask": torch.tensor([[True, False] * 2] * 2)}, "none of 'row'"),
    ],
)
def test_what_does_not_belong_together_is_refused(changed: dict[str, object], says: str) -> None:
    right: dict[str, object] = {
        "weights": torch.zeros(2, 4, dtype=torch.int64),
        "format": NumberFormat(3, "asymmetric", "channel"),
        "sparsity": Sparsity("element", 0.5),
        "mask": torch.tensor([[True, False] * 2] * 2),
        "side": {"scale": torch.ones(2), "zero_point": torch.tensor([1, 0])},
    }
    pack_weights(**right)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=says) as found:
        pack_weights(**{**right, **changed})  # type: ignore[arg-type]
    assert "\n" not in str(found.value)
