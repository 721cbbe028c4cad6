"""Policies applied to whole networks: residual sums, depthwise, grouped, strided, dilated, concatenated, flattened."""

from functools import lru_cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from automl.compression import CompressionOptions, Compressor, compress
from automl.data import DataBundle, load_data
from automl.training import TrainingOptions, train
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError
from search_spaces.policy import CompressionPolicy


class Mixed(nn.Module):
    """Every way in which a layer can read pruned channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.inner = nn.Conv2d(16, 12, 3, padding=2, dilation=2)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.outer = nn.Conv2d(12, 16, 1)
        self.left = nn.Conv2d(16, 8, 3, stride=2, padding=1)
        self.right = nn.Conv2d(16, 8, 1, stride=2)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.hidden = nn.Linear(16 * 16, 24)
        self.norm1d = nn.BatchNorm1d(24)
        self.fc = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(self.depthwise(self.inner(x).relu()).relu())
        x = torch.cat([self.left(x).relu(), self.right(x).relu()], dim=1)
        x = self.grouped(x).relu()
        return self.fc(self.norm1d(self.hidden(x.flatten(1))).relu())


@lru_cache
def digits() -> DataBundle:
    return load_data("digits", {"size": 8})


def images(count: int) -> Tensor:
    return digits().train.tensors[0][:count]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Trained, because only trained networks have the redundancy that reconstruction lives on."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Mixed()
    train(model, digits(), TrainingOptions(epochs=4, lr=0.05))
    return model


@pytest.fixture(scope="module")
def network(model: nn.Module) -> PrunableNetwork:
    return PrunableNetwork(model, images(2))


@pytest.fixture(scope="module")
def compressor(network: PrunableNetwork) -> Compressor:
    return Compressor(network, images(400), CompressionOptions(calibration_images=400))


def every(network: PrunableNetwork, keep: float) -> CompressionPolicy:
    return CompressionPolicy.from_keep({group.name: keep for group in network.graph.groups})


def parameters(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def error(compressed: nn.Module, model: nn.Module, inputs: Tensor | None = None) -> float:
    """Relative squared error of the outputs, by default on images that calibration has not seen."""
    inputs = digits().val.tensors[0] if inputs is None else inputs
    with torch.no_grad():
        wanted, got = model(inputs), compressed(inputs)
    return float((got - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


def test_what_is_captured_covers_the_kinds(network: PrunableNetwork) -> None:
    reconstructed = {layer.name for layer in network.graph.layers if layer.in_extent.terms and not layer.depthwise}
    assert {"inner", "outer", "left", "right", "hidden", "fc"} <= reconstructed


def test_keeping_everything_is_the_original(model: nn.Module, network: PrunableNetwork, compressor: Compressor) -> None:
    whole = compressor.apply(every(network, 1.0))
    torch.testing.assert_close(whole(images(8)), model(images(8)), atol=1e-5, rtol=1e-5)
    assert same(parameters(whole), parameters(model))


@settings(max_examples=40)
@given(st.data())
def test_any_policy_gives_the_shapes_of_the_graph(compressor: Compressor, data: st.DataObject) -> None:
    graph = compressor.network.graph
    keeps = data.draw(
        st.fixed_dictionaries(
            {}, optional={group.name: st.floats(0.01, 1.0, exclude_min=True) for group in graph.groups}
        )
    )
    policy = CompressionPolicy.from_keep(keeps)
    kept = compressor.kept(policy)
    pruned = graph.apply(policy)
    for group, count in zip(graph.groups, pruned.kept, strict=True):
        units = kept[group.name]
        assert len(units) == count
        assert all(0 <= one < other < group.width for one, other in pairwise([*units, group.width - 0.5]))
    module = compressor.apply(policy)
    assert sum(parameter.numel() for parameter in module.parameters()) == pruned.params
    for layer in pruned.layers:
        inputs = layer.in_channels // layer.groups
        assert module.get_parameter(f"{layer.name}.weight").shape == (layer.out_channels, inputs, *layer.kernel)
    assert torch.isfinite(module(images(3))).all()


def test_the_most_important_units_stay(compressor: Compressor) -> None:
    weight = compressor.network.prune({}).get_parameter("outer.weight").detach()
    best = weight.abs().sum((0, 2, 3)).argsort(descending=True)[:6]
    policy = CompressionPolicy.from_keep({"inner": 0.5})
    assert compressor.kept(policy)["inner"] == sorted(best.tolist())


def test_reconstruction_lowers_the_error_of_every_single_group(
    model: nn.Module, network: PrunableNetwork, compressor: Compressor
) -> None:
    plain = Compressor(network, None, CompressionOptions(reconstruct=False))
    for group in network.graph.groups:
        policy = CompressionPolicy.from_keep({group.name: 0.6})
        assert error(compressor.apply(policy), model) < 0.5 * error(plain.apply(policy), model), group.name


def test_reconstruction_and_recalibration_lower_the_error_of_whole_policies(
    model: nn.Module, network: PrunableNetwork, compressor: Compressor
) -> None:
    plain = Compressor(network, None, CompressionOptions(reconstruct=False))
    recalibrated = Compressor(network, images(400), CompressionOptions(reconstruct=False, recalibrate_images=400))
    for keep in (0.5, 0.7, 0.9):
        policy = every(network, keep)
        before = error(plain.apply(policy), model)
        assert error(compressor.apply(policy), model) < 0.5 * before
        assert error(recalibrated.apply(policy), model) < 0.8 * before


def test_a_channel_that_others_span_is_pruned_for_free() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 4, 3)
        model = nn.Sequential(first, nn.ReLU(), second, nn.Flatten(), nn.Linear(144, 3)).eval()
    with torch.no_grad():
        first.weight[5], first.bias[5] = 2 * first.weight[1], 2 * first.bias[1]  # relu keeps a positive factor
        second.weight[:, 5] *= 0.1  # now the least important one
    policy = CompressionPolicy.from_keep({"0": 5 / 6})
    before = error(compress(model, policy, images(2)), model)
    assert before > 1e-4
    assert error(compress(model, policy, images(2), images(300)), model) < 1e-3 * before


def test_policies_do_not_depend_on_what_came_before(network: PrunableNetwork, model: nn.Module) -> None:
    options = CompressionOptions(recalibrate_images=64, seed=3)
    before = parameters(model)
    first, second = (Compressor(network, images(200), options) for _ in range(2))
    one = parameters(first.apply(every(network, 0.5)))
    first.apply(every(network, 0.3))
    assert same(parameters(first.apply(every(network, 0.5))), one)
    assert same(parameters(second.apply(every(network, 0.5))), one)
    assert same(parameters(model), before)
    other_seed = Compressor(network, images(200), CompressionOptions(recalibrate_images=64, seed=4))
    assert not same(parameters(other_seed.apply(every(network, 0.5))), one)


def test_the_result_belongs_to_the_caller(compressor: Compressor) -> None:
    policy = every(compressor.network, 0.5)
    one = compressor.apply(policy)
    expected = parameters(one)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.zero_()
    assert same(parameters(compressor.apply(policy)), expected)


def test_global_random_state_is_left_alone(network: PrunableNetwork) -> None:
    before = torch.get_rng_state()
    Compressor(network, images(100), CompressionOptions(recalibrate_images=50)).apply(every(network, 0.5))
    assert torch.equal(torch.get_rng_state(), before)


def test_compress_leaves_the_model_as_it_was(model: nn.Module) -> None:
    training = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2)).train()
    before = parameters(training)
    small = compress(training, CompressionPolicy.from_keep({"0": 0.5}), images(2), images(50))
    assert same(parameters(training), before)
    assert training.training
    assert not small.training
    assert small.get_parameter("0.weight").shape[0] == 4
    assert not hasattr(small, "weight_mask")


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (torch.zeros(10, 3, 8, 8), r"shape \[N, 1, 8, 8\] of the network's input with N >= 1, got \[10, 3, 8, 8\]"),
        (torch.zeros(1, 8, 8), r"got \[1, 8, 8\]"),
        (torch.zeros(0, 1, 8, 8), r"N >= 1"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.int64), r"floating-point tensor, got torch.int64"),
        ([1, 2], r"floating-point tensor, got list"),
        (torch.full((4, 1, 8, 8), float("nan")), r"finite numbers, some are NaN"),
    ],
)
def test_bad_calibration_images_are_refused(model: nn.Module, calibration: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        compress(model, CompressionPolicy(), images(2), calibration)


def test_bad_weights_and_options_are_refused(network: PrunableNetwork) -> None:
    broken = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    with torch.no_grad():
        broken[2].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"'2.weight' holds NaN"):
        compress(broken, CompressionPolicy(), images(2))
    with pytest.raises(InputError, match="need calibration images"):
        Compressor(network, None, CompressionOptions())
    with pytest.raises(InputError, match=r"calibration_images is at least 1, got 0"):
        CompressionOptions(calibration_images=0)
    with pytest.raises(InputError, match=r"recalibrate_images is 0 \(off\) or at least 2"):
        CompressionOptions(recalibrate_images=1)
    with pytest.raises(InputError, match="at least 2 calibration images, got 1"):
        Compressor(network, images(1), CompressionOptions(recalibrate_images=2))
    with pytest.raises(InputError, match="no layer 'stern'"):
        Compressor(network, images(2)).apply(CompressionPolicy.from_keep({"stern": 0.5}))
