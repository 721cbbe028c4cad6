"""Every kernel against torch, in networks of a few operators; none may be left to stock TVM."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from backends.torch_reference import reference_output
from backends.tvm import compile_module


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Of(nn.Module):
    """A module out of layers and a function of the input and the layers."""

    def __init__(self, function, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.function = function

    def forward(self, x):
        return self.function(x, *self.layers)


def randomized(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / max(1, tensor[0].numel()) ** 0.5)
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.running_var.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
    return module.eval()


def check(module, shape, *, mcpu=None, threads=1, tolerance=1e-5, kinds=None):
    module = randomized(module)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    compiled = compile_module(module, x, mcpu=mcpu, threads=threads)
    expected, output = reference_output(module, x), compiled.run(x.numpy())
    assert output.shape == expected.shape
    assert np.abs(output - expected).max() <= tolerance * np.abs(expected).max()
    assert compiled.fallbacks == {}
    if kinds is not None:
        assert compiled.operators == kinds
    return compiled


CONVOLUTIONS = [
    # in, out, kernel, options, input height and width
    (16, 32, 1, {}, (8, 8)),
    (13, 7, 1, {}, (5, 9)),
    (40, 24, 1, {"stride": 2}, (9, 9)),
    (16, 16, 3, {"padding": 1}, (4, 4)),
    (16, 48, 3, {"padding": 1, "bias": False}, (16, 16)),
    (33, 17, 3, {"padding": 1}, (7, 7)),
    (64, 64, 3, {"padding": 1}, (4, 4)),
    (32, 64, 3, {"padding": 1, "stride": 2}, (8, 8)),
    (5, 3, 3, {}, (3, 3)),
    (24, 20, 5, {"padding": 2}, (6, 11)),
    (8, 16, 5, {}, (12, 12)),
    (3, 16, 7, {"padding": 3, "stride": 2}, (21, 33)),
    (9, 9, (1, 3), {"padding": (0, 1)}, (6, 10)),
    (18, 10, (3, 1), {"padding": (1, 0), "stride": (1, 2)}, (10, 6)),
    (16, 16, 3, {"padding": 2, "dilation": 2}, (9, 9)),
    (20, 20, 3, {"padding": "same"}, (31, 17)),
    (16, 16, 3, {"padding": 1}, (37, 31)),
    (1, 6, 3, {"padding": 1}, (16, 16)),
    (2, 100, 3, {"padding": 1}, (4, 5)),
    (16, 32, 3, {"padding": 1, "groups": 2}, (6, 6)),
    (12, 18, 3, {"padding": 1, "groups": 3}, (6, 6)),
    (304, 16, 1, {}, (2, 2)),
]


@pytest.mark.parametrize(("channels", "outputs", "kernel", "options", "size"), CONVOLUTIONS)
def test_convolution(channels, outputs, kernel, options, size):
    check(nn.Conv2d(channels, outputs, kernel, **options), (1, channels, *size))


@pytest.mark.parametrize(
    ("channels", "kernel", "options", "size"),
    [
        (16, 3, {"padding": 1}, (8, 8)),
        (37, 3, {"padding": 1, "stride": 2}, (9, 13)),
        (24, 5, {"padding": 2}, (17, 7)),
        (8, 3, {"padding": 2, "dilation": 2}, (7, 7)),
        (5, (1, 3), {"padding": (0, 1), "bias": False}, (4, 31)),
    ],
)
@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise(channels, kernel, options, size, multiplier):
    layer = nn.Conv2d(channels, channels * multiplier, kernel, groups=channels, **options)
    compiled = check(layer, (1, channels, *size))
    assert compiled.operators["depthwise"] == 1


POOLS = {
    "max": lambda x: F.max_pool2d(x, 2),
    "max_overlapping": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_ceil": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "max_dilated": lambda x: F.max_pool2d(x, 2, 1, dilation=2),
    "max_asymmetric": lambda x: F.max_pool2d(x, (1, 3), (2, 1), (0, 1)),
    "average": lambda x: F.avg_pool2d(x, 2),
    "average_border": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "average_without_border": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "average_ceil": lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True),
    "average_ceil_border": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "global": lambda x: F.adaptive_avg_pool2d(x, 1),
    "mean": lambda x: x.mean((2, 3)),
    "adaptive": lambda x: F.adaptive_avg_pool2d(F.max_pool2d(x, 2)[:, :, :4, :4], 2),
}


@pytest.mark.parametrize("pool", POOLS)
def test_pooling(pool):
    size = (8, 13) if pool.endswith(("asymmetric", "adaptive")) else (9, 9)
    # behind a negative offset: a border of zeros would win a maximum
    module = Of(lambda x, conv: POOLS[pool](conv(x) - 10), nn.Conv2d(3, 20, 1))
    check(module, (2, 3, *size))


@pytest.mark.parametrize(
    ("batch", "inputs", "outputs"), [(1, 784, 300), (1, 64, 10), (1, 33, 1), (3, 50, 17), (64, 100, 48), (1, 7, 1000)]
)
def test_dense(batch, inputs, outputs):
    check(nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU()), (batch, inputs), kinds={"dense": 1})


def test_dense_with_batch_norm_is_one_kernel():
    check(nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20), nn.ReLU6()), (4, 30), kinds={"dense": 1})


@pytest.mark.parametrize("channels", [5, 16, 50])
def test_flattening_reorders_weights_not_values(channels):
    layers = nn.Conv2d(3, channels, 3), nn.Linear(channels * 6 * 4, 11)
    module = Of(lambda x, conv, linear: linear(conv(x).flatten(1)), *layers)
    check(module, (2, 3, 8, 6), kinds={"conv2d": 1, "dense": 1})


@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_activation_and_residual_are_fused(bias):
    def forward(x, stem, conv, norm):
        x = stem(x)
        return F.relu(norm(conv(x)) + x)

    layers = nn.Conv2d(3, 20, 1), nn.Conv2d(20, 20, 3, padding=1, bias=bias), nn.BatchNorm2d(20)
    check(Of(forward, *layers), (1, 3, 8, 8), kinds={"conv2d": 2, "unpack": 1})


def test_a_shortcut_that_comes_later_is_fused_too():
    def forward(x, conv, norm, shortcut, norm2):
        return F.relu(norm(conv(x)) + norm2(shortcut(x)))

    layers = nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32)
    check(Of(forward, *layers), (1, 16, 8, 8), kinds={"pack": 1, "conv2d": 2, "unpack": 1})


@pytest.mark.parametrize("width", [(16, 32), (11, 24), (12, 21)])
def test_padded_shortcut_is_one_gather(width):
    narrow, wide = width

    def forward(x, stem, conv):
        x = stem(x)
        extra = wide - narrow
        return F.relu(conv(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, extra // 2, extra - extra // 2)))

    layers = nn.Conv2d(3, narrow, 1), nn.Conv2d(narrow, wide, 3, 2, 1)
    check(Of(forward, *layers), (1, 3, 8, 8), kinds={"conv2d": 2, "gather": 1, "unpack": 1})


def test_batch_norm_without_convolution_is_one_kernel_with_its_activation():
    module = Of(
        lambda x, a, norm, b: b(F.relu(norm(F.max_pool2d(a(x), 2)))),
        nn.Conv2d(3, 20, 1),
        nn.BatchNorm2d(20),
        nn.Conv2d(20, 8, 3),
    )
    check(module, (1, 3, 10, 10), kinds={"conv2d": 2, "max_pool": 1, "elementwise": 1, "unpack": 1})


def test_batch_norm_of_features():
    check(Of(lambda x, norm, linear: linear(F.relu(norm(x))), nn.BatchNorm1d(21), nn.Linear(21, 5)), (3, 21))


def test_arithmetic_with_constants_is_folded():
    module = Of(lambda x, conv: F.relu6((1 - conv(x) * 3) / 2), nn.Conv2d(16, 16, 1))
    check(module, (1, 16, 4, 4), kinds={"pack": 1, "conv2d": 1, "unpack": 1})


@pytest.mark.parametrize("widths", [(16, 16), (12, 24), (7, 9), (58, 58)])
def test_concatenation_and_what_reads_it(widths):
    def forward(x, a, b, norm, c):
        return c(F.relu(norm(torch.cat([a(x), b(x), x], 1))))

    first, second = widths
    layers = nn.Conv2d(20, first, 1), nn.Conv2d(20, second, 1), nn.BatchNorm2d(first + second + 20)
    check(Of(forward, *layers, nn.Conv2d(first + second + 20, 6, 3)), (1, 20, 6, 6))


def shuffle(x, groups=2):
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


@pytest.mark.parametrize("channels", [16, 30, 58])
def test_split_shuffle_and_concatenation_move_no_more_than_blocks(channels):
    def forward(x, stem, first, second, last):
        x = stem(x)
        for conv in (first, second):
            left, right = x.chunk(2, 1)
            x = shuffle(torch.cat([left, F.relu(conv(right))], 1))
        return last(x)

    half = channels // 2
    layers = nn.Conv2d(3, channels, 1), nn.Conv2d(half, half, 1), nn.Conv2d(half, half, 1), nn.Conv2d(channels, 9, 1)
    compiled = check(Of(forward, *layers), (1, 3, 6, 6))
    assert set(compiled.operators) <= {"conv2d", "concat", "gather", "unpack"}


def test_chosen_channels_feed_every_kind_of_layer():
    chosen = torch.tensor([17, 3, 3, 9, 0, 19])

    def forward(x, stem, conv, depthwise):
        x = torch.index_select(stem(x), 1, chosen)
        return conv(x) + depthwise(x) + F.max_pool2d(x, 3, 1, 1)

    layers = nn.Conv2d(3, 20, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
    check(Of(forward, *layers), (1, 3, 7, 7))


def test_several_rows_of_a_batch():
    module = nn.Sequential(nn.Conv2d(3, 20, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 33, 3))
    check(module, (5, 3, 12, 12))


@pytest.mark.parametrize("mcpu", ["haswell", "x86-64"])
def test_narrower_vectors(mcpu):
    def forward(x, conv, depthwise, last, linear):
        x = F.relu(conv(x))
        x = torch.cat([x, F.relu6(depthwise(x))], 1)
        return linear(F.avg_pool2d(last(x), 2).flatten(1))

    layers = (
        nn.Conv2d(3, 20, 3, padding=1),
        nn.Conv2d(20, 20, 3, padding=1, groups=20),
        nn.Conv2d(40, 13, 3, padding=1, stride=2),
        nn.Linear(13 * 16, 10),
    )
    check(Of(forward, *layers), (1, 3, 16, 16), mcpu=mcpu)


def test_several_threads():
    def forward(x, conv, depthwise, last, linear):
        x = F.max_pool2d(F.relu(conv(x)), 2)
        return linear(torch.cat([last(depthwise(x)), x], 1).flatten(1))

    layers = (
        nn.Conv2d(16, 64, 3, padding=1),
        nn.Conv2d(64, 64, 3, padding=1, groups=64),
        nn.Conv2d(64, 36, 3, padding=1),
        nn.Linear(100 * 18 * 17, 40),
    )
    check(Of(forward, *layers), (1, 16, 37, 34), threads=2)


def test_two_towers_that_meet():
    def tower(x, convs):
        for conv in convs:
            x = F.relu(conv(x))
        return x

    convs = [nn.Conv2d(16, 16, 3, padding=1) for _ in range(6)]
    module = Of(lambda x, *convs: tower(x, convs[:3]) + tower(x, convs[3:]), *convs)
    check(module, (1, 16, 6, 6), kinds={"pack": 1, "conv2d": 6, "elementwise": 1, "unpack": 1})


def test_features_are_added():
    layers = nn.Linear(20, 20), nn.Linear(20, 20)
    check(Of(lambda x, a, b: F.relu(a(x) + b(F.relu(a(x)))), *layers), (3, 20))


@pytest.mark.parametrize(
    "pick",
    [
        lambda x: x.split(7, 1)[1],
        lambda x: x[:, 3:17:2, 1:, ::3],
        lambda x: x[:, -5:, :-2],
        lambda x: F.pad(x, (1, 2, 0, 3)),
        lambda x: F.pad(x, (1, 1, 1, 1, 2, 0))[:, :, ::2],
        lambda x: F.pad(x[:, :, 1:], (0, 0, 0, 0, 1, 4)),
    ],
    ids=["split", "slice", "negative", "border", "border_and_channels", "slice_and_channels"],
)
def test_parts_and_borders(pick):
    def forward(x, stem, conv):
        x = pick(stem(x))
        return conv(x) + x

    stem = nn.Conv2d(3, 20, 1)
    channels = pick(torch.zeros(1, 20, 9, 11)).shape[1]
    check(Of(forward, stem, nn.Conv2d(channels, channels, 3, padding=1)), (1, 3, 9, 11))


def test_what_has_no_rule_is_named_and_still_right():
    module = Of(lambda x, conv: F.log_softmax(conv(x).cumsum(1)[..., None][:, 2:], 1), nn.Conv2d(16, 16, 1))
    module = randomized(module)
    x = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    compiled = compile_module(module, x)
    assert compiled.fallbacks == {"cumsum": 1, "slice": 1, "log_softmax": 1}
    np.testing.assert_allclose(compiled.run(x.numpy()), reference_output(module, x), rtol=1e-4, atol=1e-5)
