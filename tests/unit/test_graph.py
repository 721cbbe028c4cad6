"""Arithmetic of `ModelGraph` on a hand-made network: stem -> depthwise -> conv -> flatten -> linear."""

import pytest

from search_spaces.channel_space import ChannelSpace, channel_step
from search_spaces.errors import InputError
from search_spaces.graph import ChannelGroup, ModelGraph, Refusal
from search_spaces.layers import Extent, LayerSpec
from search_spaces.operators import Operator
from search_spaces.policy import CompressionPolicy, LayerPolicy


def conv(name: str, inputs: Extent, outputs: Extent, full: tuple[int, int], groups: int = 1) -> LayerSpec:
    return LayerSpec(
        name, "conv", *full, (3, 3), (1, 1), (1, 1), (1, 1), groups, (8, 8), (8, 8), 64, False, inputs, outputs
    )


def graph() -> ModelGraph:
    a, b = Extent(terms=((0, 1),)), Extent(terms=((1, 1),))
    layers = [
        conv("stem", Extent(fixed=3), a, (3, 16)),
        conv("depthwise", a, a, (16, 16), groups=16),
        conv("conv", a, b, (16, 32)),
        LayerSpec(
            "fc", "linear", 32 * 64, 10, (), (), (), (), 1, (), (), 1, True, Extent(terms=((1, 64),)), Extent(fixed=10)
        ),
    ]
    groups = [
        ChannelGroup("stem", 16, ("stem",), ("depthwise",), ("conv",)),
        ChannelGroup("conv", 32, ("conv",), (), ("fc",)),
    ]
    operators = [
        Operator("x", "input", (), (3, 8, 8), "float32"),
        Operator("stem", "conv", ("x",), (16, 8, 8), "float32", "stem", 0, a),
        Operator("bn", "batch_norm", ("stem",), (16, 8, 8), "float32", "bn", 0, a, channel_params=2),
    ]
    return ModelGraph.build(operators, layers, groups, [Refusal("fc", "its channels leave the network")], (3, 8, 8))


def test_counts_of_the_whole_network() -> None:
    whole = graph()
    assert whole.macs == 64 * 9 * (3 * 16 + 16 + 16 * 32) + 32 * 64 * 10
    assert whole.params == 9 * (3 * 16 + 16 + 16 * 32) + 32 * 64 * 10 + 10 + 2 * 16
    assert whole.weight_bytes == 4 * whole.params


def test_a_policy_shrinks_every_layer_of_its_groups() -> None:
    pruned = graph().apply(CompressionPolicy.from_keep({"stem": 0.5, "conv": 0.25}))
    assert pruned.kept == (8, 8)
    assert [(layer.in_channels, layer.out_channels, layer.groups) for layer in pruned.layers] == [
        (3, 8, 1),
        (8, 8, 8),
        (8, 8, 1),
        (512, 10, 1),
    ]
    assert pruned.macs == 64 * 9 * (3 * 8 + 8 + 8 * 8) + 512 * 10
    assert [operator.shape for operator in pruned.operators] == [(3, 8, 8), (8, 8, 8), (8, 8, 8)]
    assert pruned.params == 9 * (3 * 8 + 8 + 8 * 8) + 512 * 10 + 10 + 2 * 8


def test_real_macs_agree_with_the_counted_ones_at_whole_units() -> None:
    whole = graph()
    for kept in [(16, 32), (1, 1), (7, 31)]:
        assert whole.real_macs(kept) == pytest.approx(whole.with_kept(kept).macs, rel=1e-12)


def test_a_group_keeps_at_least_one_unit_and_policies_round_trip() -> None:
    whole = graph()
    assert whole.kept_units(CompressionPolicy.from_keep({"stem": 1e-9})) == (1, 32)
    for units in range(1, 17):
        assert whole.kept_units(whole.policy((units, 5))) == (units, 5)


def test_a_layer_speaks_for_its_group() -> None:
    whole = graph()
    assert whole.kept_units(CompressionPolicy.from_keep({"depthwise": 0.5})) == (8, 32)
    with pytest.raises(InputError, match="'stem' and 'depthwise' share their channels but keep 8 and 4"):
        whole.kept_units(CompressionPolicy.from_keep({"stem": 0.5, "depthwise": 0.25}))


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"stemm": 0.5}, "no layer 'stemm'; did you mean 'stem'"),
        ({"fc": 0.5}, "the channels of 'fc' cannot be pruned: its channels leave the network"),
    ],
)
def test_what_a_policy_cannot_say(keep: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        graph().apply(CompressionPolicy.from_keep(keep))


def test_a_policy_for_another_model_is_refused() -> None:
    with pytest.raises(InputError, match="made for another model"):
        graph().apply(CompressionPolicy({"stem": LayerPolicy(keep=0.5)}, model="0" * 64))


def test_bits_reach_the_layer_of_that_name_and_not_its_group() -> None:
    policy = CompressionPolicy(
        {"stem": LayerPolicy(keep=0.5, weight_bits=4), "fc": LayerPolicy(weight_bits=3, activation_bits=8)}
    )
    pruned = graph().apply(policy)
    assert {layer.name: (layer.weight_bits, layer.activation_bits) for layer in pruned.layers} == {
        "stem": (4, 32),
        "depthwise": (32, 32),
        "conv": (32, 32),
        "fc": (3, 8),
    }
    assert pruned.kept == (8, 32)
    assert pruned.digest == graph().digest
    packed = (9 * 3 * 8 * 4 + 8 * 32) // 8 + (32 * 64 * 10 * 3 + 10 * 32) // 8  # with a scale for each output channel
    assert pruned.weight_bytes == packed + 4 * (pruned.params - 9 * 3 * 8 - 32 * 64 * 10)
    assert pruned.layer("stem").weight_bytes == 9 * 3 * 8 * 4 // 8 + 8 * 4


def test_odd_bits_fill_whole_bytes() -> None:
    whole = graph()
    for bits, bytes_ in [(1, 54), (3, 162), (5, 270), (16, 864)]:
        stem = whole.apply(CompressionPolicy({"stem": LayerPolicy(weight_bits=bits)})).layer("stem")
        assert stem.weight_bytes == bytes_ + 16 * 4
    one = whole.with_kept((1, 1)).apply(CompressionPolicy({"stem": LayerPolicy(keep=1e-9, weight_bits=1)}))
    assert one.layer("stem").weight_bytes == 8  # 27 bits and a scale


def test_bits_stay_when_units_change_and_policies_give_them_back() -> None:
    pruned = graph().apply(CompressionPolicy({"depthwise": LayerPolicy(activation_bits=6)}))
    assert pruned.with_kept((4, 4)).layer("depthwise").activation_bits == 6
    for again in (pruned, pruned.with_kept((4, 4))):
        assert graph().apply(again.policy()) == again
    assert pruned.apply(CompressionPolicy()) == graph()


def test_a_layer_that_is_taken_apart_is_its_parts() -> None:
    policy = CompressionPolicy({"stem": LayerPolicy(keep=0.5, rank=(2, 8), factorisation="tucker2", weight_bits=8)})
    whole, small = graph(), graph().apply(policy)
    stem, parts = whole.layer("stem"), [layer for layer in small.layers if layer.name.startswith("stem.")]
    assert [part.name for part in parts] == ["stem.0", "stem.1", "stem.2"]
    assert [part.weights for part in parts] == [3 * 2, 2 * 8 * 9, 8 * 8]
    assert [part.macs for part in parts] == [64 * 3 * 2, 64 * 2 * 8 * 9, 64 * 8 * 8]
    assert [part.weight_bits for part in parts] == [8, 8, 8]
    assert [part.bias for part in parts] == [False, False, stem.bias]
    assert not any(layer.name == "stem" for layer in small.layers)
    assert [operator.name for operator in small.operators] == ["x", "stem.0", "stem.1", "stem", "bn"]
    assert [operator.layer for operator in small.operators] == [None, "stem.0", "stem.1", "stem.2", "bn"]
    assert [operator.inputs for operator in small.operators] == [(), ("x",), ("stem.0",), ("stem.1",), ("stem",)]
    assert [operator.shape[0] for operator in small.operators] == [3, 2, 8, 8, 8]
    assert graph().apply(small.policy()) == small
    assert small.real_macs(small.kept) == small.macs < whole.macs


def test_zeros_are_stored_as_what_is_smallest() -> None:
    whole = graph()
    sparse = whole.apply(CompressionPolicy({"conv": LayerPolicy(sparsity=0.9)}))
    conv = sparse.layer("conv")
    zeros = round(0.9 * conv.weights)
    assert conv.nonzeros == conv.weights - zeros
    assert (sparse.macs, sparse.params) == (whole.macs, whole.params)
    index = 461 * 3 + 461 + zeros // 8  # three low bits, a one, and eighths in unary; CSR takes 3,985, a bitmap 4,608
    assert (conv.stored.form, conv.nonzeros) == ("run_length", 461)
    assert conv.weight_bytes == -(-(461 * 32 + index) // 8)
    assert sparse.weight_bytes == whole.weight_bytes - 4 * conv.weights + conv.weight_bytes


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (LayerPolicy(rank=1000), "rank of layer 'conv' under 'svd' is from 1 to"),
        (LayerPolicy(rank=2, factorisation="tucker2"), "is from 1 to .* and from 1 to .*, got 2"),
        (LayerPolicy(rank=32), "saves nothing in layer 'conv'"),
        (LayerPolicy(sparsity=0.9999999), "leaves none of the"),
        (LayerPolicy(sparsity=0.5, pattern="block:7x4"), "blocks of 7x4 do not divide"),
        (LayerPolicy(pattern="1:7"), "needs a multiple of 7 input channels"),
    ],
)
def test_what_does_not_fit_a_layer_is_refused(layer: LayerPolicy, message: str) -> None:
    with pytest.raises(InputError, match=message):
        graph().apply(CompressionPolicy({"conv": layer}))


@pytest.mark.parametrize("bits", [{"weight_bits": 4}, {"activation_bits": 4}])
def test_bits_of_a_layer_that_is_not_there_are_refused(bits: dict[str, int]) -> None:
    with pytest.raises(InputError, match="no convolution or linear layer 'stemm'; did you mean 'stem'"):
        graph().apply(CompressionPolicy({"stemm": LayerPolicy(**bits)}))


def test_unknown_layer_is_named() -> None:
    with pytest.raises(InputError, match="no convolution or linear layer 'cnv'; did you mean 'conv'"):
        graph().layer("cnv")


def test_the_channel_grid() -> None:
    assert [channel_step(width) for width in (4, 16, 24, 64, 128, 512)] == [2, 2, 3, 8, 16, 16]


def test_choices_end_with_the_whole_width() -> None:
    space = ChannelSpace.build(graph(), lower_bound=0.2, round_to=6)
    assert space.choices(0) == (6, 12, 16)
    assert space.choices(1) == (12, 18, 24, 30, 32)
    assert ChannelSpace.build(graph(), round_to=8).least == (8, 8)


def test_protected_groups_stay_whole() -> None:
    space = ChannelSpace.build(graph(), protect=["st*"])
    assert space.choices(0) == (16,)
    assert space.least[1] < 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lower_bound": 0.0}, "lower bound"),
        ({"lower_bound": 1.5}, "lower bound"),
        ({"round_to": 0}, "multiple of at least 1"),
        ({"protect": ["layer9*"]}, "no channel group matches protect='layer9\\*'"),
        ({"protect": ["*"]}, "nothing is left to prune"),
    ],
)
def test_a_space_that_cannot_be(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ChannelSpace.build(graph(), **arguments)  # type: ignore[arg-type]
