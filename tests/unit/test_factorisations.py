"""Shapes of factored layers by arithmetic."""

from dataclasses import replace

import pytest

from search_spaces.errors import InputError
from search_spaces.factorisations import FACTORISATIONS, factors, fitting
from search_spaces.layers import Extent, LayerSpec
from search_spaces.number_formats import NumberFormat
from search_spaces.sparsity import Sparsity

CONV = LayerSpec(
    name="conv",
    kind="conv",
    in_channels=12,
    out_channels=16,
    kernel=(3, 5),
    stride=(2, 1),
    padding=(1, 4),
    dilation=(1, 2),
    groups=1,
    input_size=(10, 9),
    output_size=(5, 9),
    positions=45,
    bias=True,
    in_extent=Extent(0, ((0, 1),)),
    out_extent=Extent(0, ((1, 1),)),
)
LINEAR = replace(
    CONV,
    name="fc",
    kind="linear",
    **dict.fromkeys(("kernel", "stride", "padding", "dilation", "input_size", "output_size"), ()),  # type: ignore[arg-type]
    positions=7,
)


def test_svd_puts_the_kernel_first() -> None:
    first, last = factors(CONV, "svd", (4,))
    assert first == replace(CONV, name="conv.0", out_channels=4, out_extent=Extent(4), bias=False)
    assert (last.name, last.kernel, last.stride, last.padding, last.dilation) == (
        "conv.1",
        (1, 1),
        (1, 1),
        (0, 0),
        (1, 1),
    )
    assert (last.in_channels, last.out_channels, last.in_extent, last.out_extent) == (4, 16, Extent(4), CONV.out_extent)
    assert last.bias
    assert (first.macs, last.macs) == (12 * 4 * 15 * 45, 4 * 16 * 45)


def test_svd_of_a_linear_layer() -> None:
    first, last = factors(LINEAR, "svd", (3,))
    assert (first.weight_shape, last.weight_shape) == ((3, 12), (16, 3))
    assert (first.params, last.params) == (36, 48 + 16)
    assert (first.macs, last.macs) == (36 * 7, 48 * 7)


def test_spatial_svd_goes_along_the_columns_first() -> None:
    first, last = factors(CONV, "spatial_svd", (6,))
    assert (first.kernel, first.stride, first.padding, first.dilation) == ((3, 1), (2, 1), (1, 0), (1, 1))
    assert (last.kernel, last.stride, last.padding, last.dilation) == ((1, 5), (1, 1), (0, 4), (1, 2))
    assert (first.input_size, first.output_size, last.input_size, last.output_size) == ((10, 9), (5, 9), (5, 9), (5, 9))
    assert (first.macs, last.macs) == (6 * 12 * 3 * 45, 16 * 6 * 5 * 45)


def test_spatial_svd_strides_one_way_at_a_time() -> None:
    spec = replace(CONV, stride=(2, 2), padding=(1, 2), dilation=(1, 1), output_size=(5, 5), positions=25)
    first, last = factors(spec, "spatial_svd", (6,))
    assert (first.output_size, first.positions) == ((5, 9), 45)
    assert (last.input_size, last.output_size, last.positions) == ((5, 9), (5, 5), 25)


def test_tucker2_reads_all_pixels_before_the_stride() -> None:
    first, core, last = factors(CONV, "tucker2", (5, 7))
    assert [part.weight_shape for part in (first, core, last)] == [(5, 12, 1, 1), (7, 5, 3, 5), (16, 7, 1, 1)]
    assert [part.positions for part in (first, core, last)] == [90, 45, 45]
    assert (core.stride, core.padding, core.dilation) == (CONV.stride, CONV.padding, CONV.dilation)
    assert [part.bias for part in (first, core, last)] == [False, False, True]
    assert [part.name for part in (first, core, last)] == ["conv.0", "conv.1", "conv.2"]


@pytest.mark.parametrize(("method", "rank"), [("svd", (4,)), ("spatial_svd", (4,)), ("tucker2", (4, 4))])
def test_parts_inherit_formats_and_shrink_at_the_ends_only(method: str, rank: tuple[int, ...]) -> None:
    formats = {
        "weight_format": NumberFormat(4),
        "activation_format": NumberFormat(8, "asymmetric", "tensor"),
        "sparsity": Sparsity("element", 0.5),
    }
    parts = factors(replace(CONV, **formats), method, rank)  # type: ignore[arg-type]
    for part in parts:
        assert {name: getattr(part, name) for name in formats} == formats
    assert parts[0].in_extent == CONV.in_extent
    assert parts[-1].out_extent == CONV.out_extent
    assert all(not part.out_extent.terms for part in parts[:-1])
    assert all(not part.in_extent.terms for part in parts[1:])


@pytest.mark.parametrize(
    ("method", "rank", "message"),
    [
        ("svd", (17,), "the rank of layer 'conv' under 'svd' is from 1 to 16, got 17"),
        ("svd", (0,), "from 1 to 16, got 0"),
        ("svd", (True,), "from 1 to 16, got True"),
        ("svd", (2.0,), "from 1 to 16, got 2.0"),
        ("svd", (), "from 1 to 16, got none"),
        ("svd", (2, 3), "from 1 to 16, got 2 and 3"),
        ("spatial_svd", (37,), "from 1 to 36, got 37"),
        ("tucker2", (13, 16), "from 1 to 12 and from 1 to 16, got 13 and 16"),
        ("tucker2", (4,), "from 1 to 12 and from 1 to 16, got 4"),
        ("svd", (15,), "rank 15 saves nothing in layer 'conv': 2940 weights in place of 2880; lower it or leave"),
        ("tucker2", (12, 16), "rank 12 and 16 saves nothing"),
        (
            "tucker2",
            (1, 16),
            "of rank 1 and 16 in layer 'conv' only 1 and 15 can be used, more is dead weight; lower it",
        ),
        ("svdd", (4,), "there is no factorisation 'svdd'; did you mean 'svd'"),
    ],
)
def test_ranks_that_make_no_sense(method: str, rank: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError) as caught:
        factors(CONV, method, rank)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_equal_weights_save_nothing() -> None:
    spec = replace(LINEAR, in_channels=8, out_channels=8)
    with pytest.raises(InputError, match="rank 4 saves nothing in layer 'fc': 64 weights in place of 64"):
        factors(spec, "svd", (4,))
    assert len(factors(spec, "svd", (4,), must_save=False)) == 2


@pytest.mark.parametrize(
    ("spec", "methods", "reason"),
    [
        (replace(CONV, groups=4), ("svd", "spatial_svd", "tucker2"), "its convolution has 4 groups"),
        (replace(CONV, kind="conv_transpose"), ("svd", "spatial_svd", "tucker2"), "it is no convolution"),
        (LINEAR, ("spatial_svd",), "it is no two-dimensional convolution"),
        (LINEAR, ("tucker2",), "it is no convolution"),
        # on maps of 5 x 9 and of 10 x 9: a multiple of the first size, which tells nothing
        (replace(CONV, positions=45 + 90), ("spatial_svd", "tucker2"), "it is called several times an image"),
        (replace(LINEAR, name="lstm.weight_hh_l0"), ("svd",), "it stands inside the recurrence"),
        (replace(LINEAR, name="lstm.weight_ih_l1"), ("svd",), "it reads what the layer below gives"),
        (replace(LINEAR, name="weight_ih_l0_reverse"), ("svd",), "the other direction reads the same sequence"),
    ],
)
def test_layers_that_a_method_does_not_fit(spec: LayerSpec, methods: tuple[str, ...], reason: str) -> None:
    for method in methods:
        with pytest.raises(InputError, match=f"layer {spec.name!r} has no {method!r} factorisation: {reason}"):
            fitting(spec, method)


def test_layers_that_fit() -> None:
    assert fitting(replace(LINEAR, name="lstm.weight_ih_l0"), "svd") is FACTORISATIONS["svd"]
    assert fitting(replace(CONV, positions=135), "svd") is FACTORISATIONS["svd"]
