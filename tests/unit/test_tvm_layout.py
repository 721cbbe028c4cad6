import numpy as np
import pytest

from backends.tvm.layout import (
    ZERO,
    Blocked,
    Span,
    flattened,
    pack_channels,
    pack_convolution,
    pack_dense,
    plan_reduction,
)

LANES = 16


def blocked(channels, blocks=1, height=2, width=3, lanes=4):
    return Blocked(None, np.asarray(channels), 1, blocks, height, width, lanes)


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
    found, order, starts = plan_reduction(np.asarray(channels), LANES)
    if found.start is None:
        span = Span(span.steps, span.width, None)
    assert found == span
    read = (starts[:, None] + np.arange(found.width)).reshape(-1)
    assert (read == np.asarray(channels)[order]).all()


def test_span_leaves_out_channels_of_zeros_and_follows_a_shuffle():
    span, order, starts = plan_reduction(np.array([ZERO, 2, 0, ZERO, 3, 1]), LANES)
    assert (span, list(order), list(starts)) == (Span(1, 4, 0), [2, 5, 1, 4], [0])


def test_span_never_crosses_a_block():
    span, _, _ = plan_reduction(np.arange(8, 24), LANES)
    assert span == Span(2, 8, 8)


def test_repeated_channels_are_read_each_by_itself():
    span, order, starts = plan_reduction(np.array([3, 3, 4]), LANES)
    assert (span, list(order), list(starts)) == (Span(3, 1, None), [0, 1, 2], [3, 3, 4])


def test_packed_convolution_is_the_convolution():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(5, 6, 1, 1)).astype(np.float32)
    channels = np.array([9, 8, 1, 0, 3, 2])
    x = rng.normal(size=(16,)).astype(np.float32)
    span, order, starts = plan_reduction(channels, lanes=4)
    packed = pack_convolution(weight, order, span.width, lanes=4)
    assert packed.shape == (2, span.steps, 1, 1, span.width, 4)
    read = x[(starts[:, None] + np.arange(span.width))]
    out = np.einsum("sk,oskv->ov", read, packed[:, :, 0, 0]).reshape(-1)
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
    packed = pack_channels(np.array([1.0, 2.0, 3.0]), np.array([5, ZERO, 0]), blocks=2, lanes=4)
    assert packed.tolist() == [[3, 0, 0, 0], [0, 1, 0, 0]]


def test_flattening_finds_each_feature_in_the_buffer():
    value = blocked([5, 0], blocks=2, lanes=4)
    buffer = np.arange(2 * 2 * 3 * 4).reshape(2, 2, 3, 4)
    expected = np.stack([buffer[1, :, :, 1], buffer[0, :, :, 0]]).reshape(-1)
    assert (buffer.reshape(-1)[flattened(value)] == expected).all()


def test_flattening_refuses_channels_that_are_not_stored():
    with pytest.raises(ValueError, match="no position"):
        flattened(blocked([0, ZERO]))
