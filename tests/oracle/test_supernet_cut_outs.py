"""Sub-networks of a supernet: the largest network with what is not kept set to zero, and what is cut out of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from automl.compression import CompressionOptions, Compressor
from automl.compression.elastic import Elastic
from automl.compression.recalibration import recalibrate_batch_norm
from automl.compression.running import channels_last
from automl.models import build_model
from automl.supernet.network import Supernet
from search_spaces.blocks import residual_blocks
from search_spaces.building import SpaceOptions, build_space
from search_spaces.capture import PrunableNetwork
from search_spaces.policy import CompressionPolicy
from search_spaces.resizing import resize
from search_spaces.space import SearchSpace

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
RESOLUTION = (12, 12)


class WideKernels(nn.Module):
    """Residual blocks of a depthwise convolution of 7 x 7 between two of 1 x 1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
                *(nn.Conv2d(16, 16, 7, padding=3, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
                *(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8)),
            )
            for _ in range(3)
        )
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], int]] = {
    "wide_kernels": (WideKernels, {"kernel": [3, 5], "depth": 0}, 200),
    "mobilenet_v2": (lambda: _zoo("mobilenet_v2", width=0.25), {"kernel": [1], "depth": 1}, 20),
    "resnet20": (lambda: _zoo("resnet20", shortcut="B"), {"kernel": [1], "depth": 0}, 50),
}
"""With the options of a space, and the settings of it that are cut out."""

Elasticities = tuple[nn.Module, PrunableNetwork, SearchSpace, Supernet, int]


def _zoo(name: str, **args: Any) -> nn.Module:
    model = build_model(name, args, classes=10, input_shape=(3, 16, 16))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # two runs in train mode are compared
    return model


@pytest.fixture(scope="module", params=NETWORKS)
def elastic_network(request: pytest.FixtureRequest) -> Elasticities:
    """The model, as captured, its space, a supernet in which nothing is what it begins as, and how many settings."""
    make, options, settings = NETWORKS[request.param]
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator)
            nn.init.normal_(module.bias, std=0.2, generator=generator)
    recalibrate_batch_norm(model, torch.randn(64, 3, 16, 16, generator=generator))
    network = PrunableNetwork(model, IMAGES[:1], resolutions=[RESOLUTION])
    space = build_space(network.graph, SpaceOptions(resolution=[RESOLUTION[0]], lower_bound=0.25, **options))
    shuffle = np.random.default_rng(1)
    supernet = Supernet(network, space, Elastic({g.name: shuffle.permutation(g.width) for g in network.graph.groups}))
    with torch.no_grad():
        for matrix in supernet.transforms.values():
            matrix += 0.2 * torch.randn(matrix.shape, generator=generator)
    return model, network, space, supernet.eval(), settings


def policies(space: SearchSpace, count: int) -> Iterator[CompressionPolicy]:
    generator = np.random.default_rng(2)
    return (space.decode(space.sample(generator)) for _ in range(count))


@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_a_sub_network_is_the_largest_one_with_the_rest_set_to_zero(
    elastic_network: Elasticities, training: bool
) -> None:
    model, network, space, supernet, _ = elastic_network
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    supernet.train(training)
    for policy in policies(space, 20):
        found = supernet(IMAGES, policy)
        images = channels_last(resize(IMAGES, policy.resolution))
        with _zeroed(model, network, supernet.elastic, policy, training):
            wanted = model(images)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    supernet.eval()
    assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())


@torch.no_grad()
def test_what_is_cut_out_answers_as_the_supernet_and_is_as_small_as_arithmetic_says(
    elastic_network: Elasticities,
) -> None:
    _, network, space, supernet, settings = elastic_network
    compressor = _compressor(network, supernet)
    distinct = set()
    for policy in policies(space, settings):
        wanted, module = supernet(IMAGES, policy), compressor.apply(policy)
        graph = network.graph.apply(policy)
        images = resize(IMAGES, policy.resolution)
        torch.testing.assert_close(module(images), wanted, rtol=1e-5, atol=1e-5)
        with FlopCounterMode(display=False) as counter:
            module(images[:1])
        assert counter.get_total_flops() == 2 * graph.macs
        assert sum(each.numel() for each in module.parameters()) == graph.params
        distinct.add((graph.macs, graph.params))
    assert len(distinct) > settings / 2


def test_gradients_reach_what_a_sub_network_uses_and_nothing_else(elastic_network: Elasticities) -> None:
    _, network, space, supernet, _ = elastic_network
    policy = space.decode(space.least)
    supernet.train().zero_grad()
    supernet(IMAGES, policy).square().sum().backward()
    supernet.eval()
    cut = dict(_compressor(network, supernet).apply(policy).named_parameters())
    cropped = {f"{name}.weight" for name, layer in policy.layers.items() if layer.kernel is not None}
    for name, parameter in supernet.largest.named_parameters():
        if name not in cut:
            assert parameter.grad is None
            continue
        assert parameter.grad is not None
        touched = int(parameter.grad.count_nonzero())
        assert 0 < touched <= (parameter.numel() if name in cropped else cut[name].numel())
    used = {key for key in supernet.elastic.transforms if f"{key.rpartition('.')[0]}.weight" in cut}
    reached = {key.replace("/", ".") for key, each in supernet.transforms.items() if each.grad is not None}
    assert reached == used


@torch.no_grad()
def test_what_was_trained_goes_to_where_it_came_from(elastic_network: Elasticities) -> None:
    _, network, space, supernet, _ = elastic_network
    policy = space.decode(space.least)
    supernet.train()  # by the statistics of the batch no signal is lost on its way through so small a network
    before = supernet(IMAGES, policy)
    name = next(name for name, _ in supernet.largest.named_parameters() if name.endswith("weight"))
    weight = supernet.largest.get_parameter(name)
    kept = _compressor(network, supernet).kept(policy)
    group = network.graph.groups[0].name
    gone = sorted({*range(network.graph.groups[0].width)} - {*kept[group]})
    whole = weight.clone()
    weight[gone] += 1.0
    assert torch.equal(supernet(IMAGES, policy), before)
    weight[kept[group]] *= 1.5
    weight[kept[group]] += 0.1
    changed = supernet(IMAGES, policy)
    weight.copy_(whole)
    assert not torch.allclose(changed, before)
    assert not torch.allclose(before[0], before[1])
    torch.testing.assert_close(supernet(IMAGES, policy), before)
    supernet.eval()


def test_another_order_keeps_other_channels(elastic_network: Elasticities) -> None:
    _, network, space, supernet, _ = elastic_network
    old, policy = supernet.elastic.order, space.decode(space.least)
    before = supernet(IMAGES, policy)
    supernet.reorder({name: units[::-1].copy() for name, units in old.items()})
    after = supernet(IMAGES, policy)
    kept = _compressor(network, supernet).kept(policy)
    supernet.reorder(old)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(supernet(IMAGES, policy), before)
    counts = dict(zip((group.name for group in network.graph.groups), network.graph.kept_units(policy), strict=True))
    assert all(set(units) == set(old[name][::-1][: counts[name]].tolist()) for name, units in kept.items())


def _compressor(network: PrunableNetwork, supernet: Supernet) -> Compressor:
    options = CompressionOptions(reconstruct=False)
    return Compressor(network.holding(supernet.weights), None, options, elastic=supernet.elastic)


@contextmanager
def _zeroed(
    model: nn.Module, network: PrunableNetwork, elastic: Elastic, policy: CompressionPolicy, training: bool
) -> Iterator[None]:
    """The model as written, in which what the policy does without is zero."""
    graph = network.graph.apply(policy)
    alive = {}
    for index, (group, count) in enumerate(zip(network.graph.groups, graph.kept, strict=True)):
        alive[index] = np.isin(np.arange(group.width), elastic.order[group.name][:count])
    gone = {block.layers[-1] for block in residual_blocks(network.graph) if block in graph.removed}
    modules = dict(model.named_modules())
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = []
    for name, (groups, units) in network.carried.items():
        stays = [alive[group][unit] if group >= 0 else True for group, unit in zip(groups, units, strict=True)]
        mask = torch.tensor(stays, dtype=torch.float32).view(1, -1, 1, 1)
        before = name.replace("bn", "conv") if "bn" in name else _previous(name)
        mask = mask * 0 if before in gone else mask
        hooks.append(modules[name].register_forward_hook(lambda _, __, out, mask=mask: out * mask))
    for name, layer in policy.layers.items():
        if layer.kernel is not None and not layer.remove:
            weight = modules[name].weight
            weight.data = _cropped(weight.data, name, layer.kernel, elastic)
    model.train(training)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        model.load_state_dict(saved)
        model.eval()


def _previous(name: str) -> str:
    """The layer before a batch norm in a sequence: "blocks.0.7" follows "blocks.0.6"."""
    owner, _, last = name.rpartition(".")
    return f"{owner}.{int(last) - 1}"


def _cropped(weight: Tensor, layer: str, wanted: int, elastic: Elastic) -> Tensor:
    """The kernel of `wanted` in the middle of zeros, one channel after another, from one width to the next."""
    whole, found = weight.shape[-1], weight
    for width in (5, 3, 1):
        key = f"{layer}.{width}"
        if width < wanted or key not in elastic.transforms:
            continue
        rim = (found.shape[-1] - width) // 2
        rows = []
        for filters in found:
            for kernel in filters:
                part = kernel[rim : rim + width, rim : rim + width].reshape(-1)
                rows.append(elastic.transforms[key].mv(part).reshape(width, width))
        found = torch.stack(rows).reshape(*weight.shape[:2], width, width)
    rim = (whole - wanted) // 2
    return F.pad(found, (rim, rim, rim, rim))
