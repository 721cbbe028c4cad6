"""Every network of the zoo, and well-known ones of torchvision and timm: pruned to random keep ratios, the output is
that of the network with those channels zeroed, and the arithmetic agrees with what torch counts."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from capture_nets import random_units, randomised, relative_error, zeroed
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from automl.models import build_model, model_names
from search_spaces.capture import PrunableNetwork

TOLERANCE = 1e-4
QUICK = {"lenet300_100", "lenet5", "alexnet_cifar", "vgg11", "vgg16", "plain20", "resnet20", "mobilenet_v1"}
QUICK |= {"mobilenet_v2", "squeezenet", "shufflenet_v2", "densenet40"}


def check(model: nn.Module, x: Tensor, *, rounds: int = 2) -> PrunableNetwork:
    model = randomised(model)
    network = PrunableNetwork(model, x)
    graph = network.graph
    rng = np.random.default_rng(0)
    names = set(model.state_dict())
    with torch.no_grad():
        assert relative_error(network.prune({})(x), model(x)) < TOLERANCE
        for _ in range(rounds):
            kept = random_units(network, rng)
            policy = graph.policy([len(kept[group.name]) for group in graph.groups])
            pruned, twin = network.prune(kept), zeroed(network, model, kept)(x)
            assert relative_error(pruned(x), twin) < TOLERANCE
            assert relative_error(twin, model(x)) > 0.01
            smaller = graph.apply(policy)
            with FlopCounterMode(display=False) as counter:
                pruned(x)
            assert smaller.macs == counter.get_total_flops() // 2 // len(x)
            assert smaller.params == sum(parameter.numel() for parameter in pruned.parameters())
            assert set(pruned.state_dict()) <= names
    return network


def image(size: int, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name, _ in model_names()
        if ":" not in name
    ],
)
def test_zoo(name: str) -> None:
    shape = (1, 28, 28) if name.startswith("lenet") else (3, 32, 32)
    network = check(build_model(name, {}, classes=10, input_shape=shape), image(shape[1], shape[0]))
    refused = [refusal.name for refusal in network.graph.refusals if "only one unit" not in refusal.reason]
    assert len(refused) == 1  # the classifier


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("resnet18", 12),
        pytest.param("mobilenet_v2", 25, marks=pytest.mark.slow),
        pytest.param("googlenet", 57, marks=pytest.mark.slow),
        ("shufflenet_v2_x1_0", 86),
        pytest.param("resnet50", 37, marks=pytest.mark.slow),
        pytest.param("vgg16", 15, marks=pytest.mark.slow),
        pytest.param("densenet121", 120, marks=pytest.mark.slow),
        pytest.param("resnext50_32x4d", 37, marks=pytest.mark.slow),
        pytest.param("mobilenet_v3_small", 27, marks=pytest.mark.slow),
        pytest.param("regnet_y_400mf", 53, marks=pytest.mark.slow),
        pytest.param("inception_v3", 94, marks=pytest.mark.slow),
    ],
)
def test_torchvision(name: str, groups: int, vision: Callable[[str], ModuleType]) -> None:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = getattr(vision("torchvision.models"), name)(weights=None, **options)
    network = check(model, image(96 if name == "inception_v3" else 64))
    assert len(network.graph.groups) == groups


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("efficientnet_b0", 40),
        pytest.param("tf_efficientnet_b0", 40, marks=pytest.mark.slow),
        pytest.param("ghostnet_100", 31, marks=pytest.mark.slow),
        pytest.param("hrnet_w18_small", 45, marks=pytest.mark.slow),
        pytest.param("res2net50_26w_4s", 93, marks=pytest.mark.slow),
        pytest.param("mixnet_s", 72, marks=pytest.mark.slow),
    ],
)
def test_timm(name: str, groups: int, vision: Callable[[str], ModuleType]) -> None:
    network = check(vision("timm").create_model(name), image(64))
    assert len(network.graph.groups) == groups


@pytest.mark.slow
def test_transformer_stays_prunable_where_it_is_not_attention(vision: Callable[[str], ModuleType]) -> None:
    model = randomised(vision("torchvision.models").swin_t(weights=None))
    network = PrunableNetwork(model, image(64))
    assert [group.name for group in network.graph.groups] == [
        f"features.{stage}.{block}.mlp.0"
        for stage, blocks in ((1, 2), (3, 2), (5, 6), (7, 2))
        for block in range(blocks)
    ]
    kept = random_units(network, np.random.default_rng(0))
    with torch.no_grad():
        assert relative_error(network.prune(kept)(image(64)), zeroed(network, model, kept)(image(64))) < TOLERANCE
