"""Depth as a decision: what is left out costs nothing, and what is decided of it means nothing."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from automl.models import build_model
from backends.accelerators.backend import AcceleratorBackend
from backends.accelerators.catalogue import load
from backends.counting import CountingBackend
from backends.point_prices import PointPrices
from search_spaces.blocks import residual_blocks
from search_spaces.building import SpaceOptions, build_space
from search_spaces.capture import PrunableNetwork
from search_spaces.depth import DEPTH, rows_of_blocks
from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph
from search_spaces.objective import COUNTED, MODELLED
from search_spaces.policy import CompressionPolicy, LayerPolicy
from search_spaces.space import SearchSpace

EVERYTHING: dict[str, Any] = {"depth": 0, "kernel": [1], "weight_bits": [4, 8], "activation_bits": [8], "round_to": 8}


def graph_of(name: str) -> ModelGraph:
    model = build_model(name, {}, classes=10, input_shape=(3, 16, 16), seed=0)
    return PrunableNetwork(model, torch.zeros(1, 3, 16, 16)).graph


def space_of(graph: ModelGraph, **options: Any) -> SearchSpace:
    return build_space(graph, SpaceOptions(**{**EVERYTHING, **options}))


@pytest.fixture(scope="module", params=["resnet20", "mobilenet_v2"])
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return space_of(graph_of(request.param))


def test_rows_are_the_stages() -> None:
    assert [len(row) for row in rows_of_blocks(graph_of("resnet20"))] == [3, 2, 2]
    # MobileNetV2's stages of 2, 3, 4, 3 and 3 blocks, but for the first of each
    assert [len(row) for row in rows_of_blocks(graph_of("mobilenet_v2"))] == [1, 2, 3, 2, 2]


@pytest.mark.parametrize(("least", "choices"), [(0, [0, 1, 2, 3]), (2, [2, 3]), (1, [1, 2, 3])])
def test_a_row_keeps_its_first_blocks(least: int, choices: list[int]) -> None:
    space = space_of(graph_of("resnet20"), depth=least)
    decisions = [each for each in space.decisions if each.dimension == DEPTH]
    assert list(decisions[0].choices) == choices
    assert len(decisions) == (1 if least == 2 else 3)  # rows of two have no choice then
    policy = space.decode(space.least)
    gone = {name for name, layer in policy.layers.items() if layer.remove}
    assert gone == {name for each in decisions for name in each.targets[least:]}


def test_costs_are_those_of_the_network_without_its_blocks(space: SearchSpace) -> None:
    generator, prices = np.random.default_rng(0), PointPrices(space)
    points = np.array([space.sample(generator) for _ in range(40)])
    costs = prices(points)
    for number, point in enumerate(points):
        cost = CountingBackend().estimate(space.graph.apply(space.decode(point)))
        assert [costs[metric][number] for metric in COUNTED] == [getattr(cost, metric) for metric in COUNTED]


def test_so_they_are_on_an_accelerator() -> None:
    space = space_of(graph_of("resnet20"))
    backend = AcceleratorBackend("bit_fusion", load("bit_fusion"))
    generator, prices = np.random.default_rng(0), PointPrices(space, backend.prices(space.graph))
    points = np.array([space.least, space.greatest, *(space.sample(generator) for _ in range(10))])
    costs, factors = prices(points), prices.factors(MODELLED)
    for number, point in enumerate(points):
        cost = backend.estimate(space.graph.apply(space.decode(point))).as_metrics()
        for row, metric in enumerate(MODELLED):
            assert costs[metric][number] == pytest.approx(cost[metric], rel=1e-12)
            parts = sum(each.costs[row][tuple(point[list(each.decisions)])] for each in factors)
            assert parts == pytest.approx(cost[metric], rel=1e-12)


def test_costs_are_the_sum_of_their_factors(space: SearchSpace) -> None:
    generator, prices = np.random.default_rng(1), PointPrices(space)
    points = np.array([space.sample(generator) for _ in range(20)])
    factors = prices.factors(COUNTED)
    costs = prices(points)
    for row, metric in enumerate(COUNTED):
        total = sum(each.costs[row][tuple(points[:, list(each.decisions)].T)] for each in factors)
        np.testing.assert_allclose(np.broadcast_to(total, len(points)), costs[metric], rtol=1e-12)


def test_points_that_differ_in_what_is_left_out_are_one_policy(space: SearchSpace) -> None:
    generator = np.random.default_rng(2)
    changed = 0
    for _ in range(40):
        point = space.sample(generator)
        policy = space.decode(point)
        canonical = space.canonical(point)
        assert space.decode(canonical).digest == policy.digest
        assert space.encode(policy).tolist() == canonical.tolist()
        assert space.canonical(canonical).tolist() == canonical.tolist()
        changed += canonical.tolist() != point.tolist()
        assert CompressionPolicy.from_json(policy.to_json()).layers == policy.layers
    assert changed > 10


class Chain(nn.Module):
    """Three residual blocks in a row and one apart, of two convolutions each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 4, 3, padding=1))
            for _ in range(4)
        )
        self.down = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for number, block in enumerate(self.blocks):
            x = torch.relu(x + block(x))
            if number == 2:
                x = self.down(x)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "options",
    [
        {"channels": False, "weight_bits": [4, 8]},
        {"channels": False, "weight_bits": [], "kernel": [1], "lower_bound": 0.5},
        {"weight_bits": [], "lower_bound": 0.5, "round_to": 1, "protect": ["stem"]},
        {"channels": False, "weight_bits": [4, 8], "kernel": [], "tie": [["blocks.0.0", "blocks.3.0"]]},
    ],
)
def test_the_size_is_the_number_of_policies(options: dict[str, Any]) -> None:
    graph = PrunableNetwork(Chain(), torch.zeros(1, 3, 8, 8)).graph
    given = {"kernel": [], "activation_bits": [], "layers": ["blocks.*"], "depth": 1, **options}
    if given["weight_bits"] and not given.get("tie"):
        given["layers"] = ["blocks.*.0"]
    space = space_of(graph, **given)
    assert [len(row) for row in rows_of_blocks(graph)] == [3, 1]
    points = product(*(range(count) for count in space.counts.tolist()))
    assert space.size == len({space.decode(np.array(point)).digest for point in points})
    assert space.size < int(np.prod(space.counts))


def test_another_block_than_the_last_is_no_policy_of_the_space(space: SearchSpace) -> None:
    decision = next(each for each in space.decisions if each.dimension == DEPTH and len(each.targets) > 1)
    layers = {**space.decode(space.greatest).layers, decision.targets[0]: LayerPolicy(remove=True)}
    block = next(each for each in residual_blocks(space.graph) if each.name == decision.targets[0])
    policy = CompressionPolicy({name: layer for name, layer in layers.items() if name not in block.layers})
    with pytest.raises(InputError, match="has no choice"):
        space.encode(policy)
