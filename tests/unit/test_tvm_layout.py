import numpy as np
import pytest

from backends.tvm.kernels.base import Span
from backends.tvm.lowering.channels import (
    ZERO,
    Channels,
    joined,
    pack_channels,
    pack_convolution,
    pack_dense,
    plan_reduction,
)
from backends.tvm.lowering.values import (
    MAP,
    Buffer,
    Packed,
    chosen,
    feature_positions,
    pack_like,
    permuted,
    reshaped,
    without,
)

LANES = 16


def packed_value(channels, blocks=1, height=2, width=3, lanes=4, dims=MAP, batch=1):
    buffer = Buffer((batch, blocks, height, width, lanes))
    return Packed(buffer, Channels.of(channels), batch, blocks, height, width, lanes, dims)


def read(value, data):
    """The logical array of a view, element by element, of the buffer's contents [N, blocks, H, W, lanes]."""
    sizes = [pair for dim in value.sizes() for pair in dim]
    out = np.zeros([size for _, size in sizes], dtype=data.dtype)
    for index in np.ndindex(out.shape):
        place = {"n": 0, "h": 0, "w": 0}
        channel = []
        for (axis, _), position in zip(sizes, index, strict=True):
            if axis == "c":
                channel.append(position)
            else:
                place[axis] = position
        position = int(value.channels.positions[tuple(channel)].reshape(-1)[0])
        block, lane = divmod(position, value.lanes)
        out[index] = 0 if position < 0 else data[place["n"], block, place["h"], place["w"], lane]
    return out.reshape(value.shape)


@pytest.mark.parametrize(
    ("channels", "span"),
    [
        (range(32), Span(2, 16, 0)),
        (range(24), Span(3, 8, 0)),
        (range(12), Span(3, 4, 0)),
        (range(13), Span(13, 1, 0)),
        (range(16, 32), Span(1, 16, 16)),  # the second half of a split
        ([0, 1, 2, 3, 16, 17, 18, 19], Span(2, 4, 0)),  # a step of 16 is no step of 4: a table
    ],
)
def test_span_reads_exactly_the_channels_stored(channels, span):
    found, order, starts = plan_reduction(Channels.of(list(channels)), LANES)
    if found.start is None:
        span = Span(span.steps, span.width, None)
    assert found == span
    visited = (starts[:, None] + np.arange(found.width)).reshape(-1)
    assert (visited == np.asarray(channels)[order]).all()


def test_span_leaves_out_channels_of_zeros_and_follows_a_shuffle():
    span, order, starts = plan_reduction(Channels.of([ZERO, 2, 0, ZERO, 3, 1]), LANES)
    assert (span, list(order), list(starts)) == (Span(1, 4, 0), [2, 5, 1, 4], [0])


def test_span_never_crosses_a_block():
    span, _, _ = plan_reduction(Channels.of(np.arange(8, 24)), LANES)
    assert span == Span(2, 8, 8)


def test_repeated_channels_are_read_each_by_itself():
    span, order, starts = plan_reduction(Channels.of([3, 3, 4]), LANES)
    assert (span, list(order), list(starts)) == (Span(3, 1, None), [0, 1, 2], [3, 3, 4])


def test_packed_convolution_is_the_convolution():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(5, 6, 1, 1)).astype(np.float32)
    channels = np.array([9, 8, 1, 0, 3, 2])
    x = rng.normal(size=(16,)).astype(np.float32)
    span, order, starts = plan_reduction(Channels.of(channels), 4)
    packed = pack_convolution(weight, order, span.width, lanes=4)
    assert packed.shape == (2, 1, 1, span.steps, span.width, 4)
    given = x[(starts[:, None] + np.arange(span.width))]
    out = np.einsum("sk,oskv->ov", given, packed[:, 0, 0]).reshape(-1)
    np.testing.assert_allclose(out[:5], weight[:, :, 0, 0] @ x[channels], rtol=1e-5)
    assert (out[5:] == 0).all()


def test_packed_dense_is_one_stream_of_the_same_weights():
    weight = np.arange(5 * 4, dtype=np.float32).reshape(5, 4)
    packed = pack_dense(weight, np.arange(4), width=2, lanes=2, blocks=4, stream=2)
    assert packed.shape == (2, 2, 2, 2, 2)
    for output in range(8):
        block, lane = divmod(output, 2)
        column = packed[block // 2, :, :, block % 2, lane].reshape(-1)
        assert (column == (weight[output] if output < 5 else 0)).all()


def test_channel_values_go_where_the_channels_lie():
    packed = pack_channels(np.array([1.0, 2.0, 3.0]), Channels.of([5, ZERO, 0]), blocks=2, lanes=4)
    assert packed.tolist() == [[3, 0, 0, 0], [0, 1, 0, 0]]


def test_flattening_finds_each_feature_in_the_buffer():
    value = reshaped(packed_value([5, 0], blocks=2, lanes=4), (1, 12))
    buffer = np.arange(2 * 2 * 3 * 4).reshape(2, 2, 3, 4)
    expected = np.stack([buffer[1, :, :, 1], buffer[0, :, :, 0]]).reshape(-1)
    assert (buffer.reshape(-1)[feature_positions(value, 1).positions] == expected).all()


def test_flattening_refuses_channels_that_are_not_stored():
    with pytest.raises(ValueError, match="whole image"):
        feature_positions(reshaped(packed_value([0, ZERO]), (1, 12)), 1)


def test_equal_maps_of_channels_are_one_object():
    assert Channels.of([0, 1, 2]) is Channels.in_order(3)
    assert Channels.of([[0, 1], [2, 3]]).flat is Channels.in_order(4)
    assert Channels.of([1, 0]) is not Channels.in_order(2)


def test_joined_values_keep_their_lanes():
    channels, taken = joined([(Channels.of([0, 1]), 1), (Channels.of([9, 4]), 3)], lanes=4)
    assert channels.positions.tolist() == [0, 1, 9, 4]
    assert taken == ((0,), (1, 2))


@pytest.mark.parametrize(
    "moves",
    [
        [("reshape", (1, 2, 3, 2, 3)), ("permute", [0, 2, 1, 3, 4]), ("reshape", (1, 6, 2, 3))],  # a channel shuffle
        [("permute", [0, 2, 3, 1]), ("reshape", (1, 6, 6)), ("permute", [0, 2, 1])],  # tokens
        [("reshape", (1, 6, 6)), ("permute", [2, 0, 1]), ("reshape", (6, 2, 3)), ("permute", [1, 0, 2])],  # heads
        [("reshape", (2, 3, 6)), ("permute", [2, 0, 1])],
        [("reshape", (1, 6, 2, 1, 3, 1)), ("permute", [5, 4, 3, 2, 1, 0])],
    ],
)
def test_views_are_what_numpy_says(moves):
    data = np.random.default_rng(0).integers(0, 1000, (1, 2, 2, 3, 4))
    value = packed_value([7, 0, 2, 5, 1, 4], blocks=2)
    expected = read(value, data)
    for name, argument in moves:
        value = reshaped(value, argument) if name == "reshape" else permuted(value, argument)
        assert value is not None
        expected = expected.reshape(argument) if name == "reshape" else expected.transpose(argument)
        assert value.shape == expected.shape
        assert (read(value, data) == expected).all()


def test_one_of_several_channels_is_a_view():
    data = np.random.default_rng(0).integers(0, 1000, (1, 2, 2, 3, 4))
    value = reshaped(packed_value([7, 0, 2, 5, 1, 4], blocks=2), (1, 3, 2, 2, 3))
    expected = read(value, data)[:, 1]
    assert (read(without(chosen(value, 1, np.array([1])), 1), data) == expected).all()


def test_a_reshape_that_would_move_data_is_no_view():
    assert reshaped(packed_value([0, 1, 2, 3]), (1, 4, 3, 2)) is None  # rows and columns cut anew
    assert reshaped(packed_value([0, 1, 2]), (1, 2, 9)) is None


def test_a_constant_is_packed_as_the_value_that_it_meets():
    value = permuted(reshaped(packed_value([5, 0, 2], blocks=2), (1, 3, 6)), [0, 2, 1])
    constant = np.arange(18.0).reshape(1, 6, 3)
    packed = pack_like(constant, value)
    assert packed.shape == (1, 2, 2, 3, 4)
    assert (read(value, packed) == constant).all()
