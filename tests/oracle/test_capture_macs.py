"""MACs and parameters against published figures."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from automl.models import build_model
from search_spaces.capture import PrunableNetwork
from search_spaces.graph import ModelGraph

IMAGENET, CIFAR = (3, 224, 224), (3, 32, 32)


def graph_of(model: nn.Module, shape: tuple[int, ...]) -> ModelGraph:
    return PrunableNetwork(model, torch.zeros(1, *shape), prove=False).graph


@pytest.fixture(scope="module")
def figures(oracles: Path) -> dict[str, Any]:
    return dict(json.loads((oracles / "macs_params.json").read_text())["models"])


@pytest.mark.parametrize(
    ("oracle", "name", "args", "shape"),
    [
        ("mobilenet_v1", "mobilenet_v1", {}, IMAGENET),
        ("mobilenet_v1_x0.75", "mobilenet_v1", {"width": 0.75}, IMAGENET),
        ("mobilenet_v2", "mobilenet_v2", {}, IMAGENET),
        ("resnet20_cifar_option_A", "resnet20", {}, CIFAR),
        ("resnet56_cifar_option_A", "resnet56", {}, CIFAR),
    ],
)
def test_zoo(
    figures: dict[str, Any], oracle: str, name: str, args: dict[str, Any], shape: tuple[int, int, int]
) -> None:
    model = build_model(name, args, classes=1000 if shape is IMAGENET else 10, input_shape=shape)
    graph = graph_of(model, shape)
    assert (graph.macs, graph.params) == (figures[oracle]["macs"], figures[oracle]["params"])


@pytest.mark.parametrize(
    ("oracle", "name"),
    [
        ("mobilenet_v2", "mobilenet_v2"),
        ("resnet18", "resnet18"),
        ("resnet50_v1.5", "resnet50"),
        ("alexnet_torchvision", "alexnet"),
        pytest.param("vgg16", "vgg16", marks=pytest.mark.slow),
    ],
)
def test_torchvision(figures: dict[str, Any], oracle: str, name: str, vision: Callable[[str], ModuleType]) -> None:
    graph = graph_of(getattr(vision("torchvision.models"), name)(weights=None), IMAGENET)
    assert (graph.macs, graph.params) == (figures[oracle]["macs"], figures[oracle]["params"])


def test_amc_pruned_mobilenet_v1(figures: dict[str, Any]) -> None:
    """AMC's published channels as a policy: by arithmetic and on the network that it leaves."""
    figure = figures["mobilenet_v1_amc_0.5flops"]
    network = PrunableNetwork(
        build_model("mobilenet_v1", {}, classes=1000, input_shape=IMAGENET), torch.zeros(1, *IMAGENET), prove=False
    )
    channels = figure["channels"][1:]
    assert len(network.graph.groups) == len(channels)
    graph = network.graph.apply(network.graph.policy(channels))
    assert (graph.macs, graph.params) == (figure["macs"], figure["params"])
    pruned = network.prune(
        {group.name: range(kept) for group, kept in zip(network.graph.groups, channels, strict=True)}
    )
    assert sum(parameter.numel() for parameter in pruned.parameters()) == figure["params"]
    assert (graph_of(pruned, IMAGENET).macs, graph_of(pruned, IMAGENET).params) == (figure["macs"], figure["params"])
