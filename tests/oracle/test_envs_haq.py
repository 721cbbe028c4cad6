"""HAQ's budget sweep (Wang et al., CVPR 2019): its published table and cases, and k-means quantised ResNet-50."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from automl.models import build_model
from backends.bit_prices import backend_price, table_price
from backends.table_file import TableFileBackend
from envs.bit_budget import DECIDED, BitBudget
from envs.mixed_precision import MixedPrecisionWalk
from search_spaces.capture import PrunableNetwork
from search_spaces.graph import ModelGraph
from search_spaces.policy import LayerPolicy

TABLE = "haq_qmobilenetv2_imagenet100_batch16_latency_table.npy"


@pytest.fixture(scope="module")
def oracle(oracles: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((oracles / "haq_bit_reduction.json").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def table(oracles: Path) -> np.ndarray[Any, Any]:
    loaded: np.ndarray[Any, Any] = np.load(oracles / TABLE, allow_pickle=False)
    return loaded


@pytest.fixture(scope="module")
def graph() -> ModelGraph:
    shape = (3, 64, 64)
    model = build_model("mobilenet_v2", {"stem": "imagenet"}, classes=100, input_shape=shape)
    return PrunableNetwork(model, torch.zeros(1, *shape), prove=False).graph


def walked(graph: ModelGraph, table: np.ndarray[Any, Any], ratio: float, least: int, faithful: bool) -> Any:
    """A walk that proposes 8 bits everywhere, at its end."""
    limit = ratio * float(table[:, 7, 7].sum())
    bits = range(least, 9)
    price = table_price(table)
    walk = MixedPrecisionWalk(graph, price, limit, weight_bits=bits, activation_bits=bits, faithful=faithful)
    done = False
    while not done:
        _, done = walk.step(np.ones(1, dtype=np.float32))
    return walk


def test_every_published_case(oracle: dict[str, Any], table: np.ndarray[Any, Any], graph: ModelGraph) -> None:
    for case in oracle["cases"]:
        assert case["start"] == "all 8/8"
        walk = walked(graph, table, case["budget_ratio"], case["min_bits"], faithful=True)
        assert walk.steps == 2 * 53
        assert walk.budget.cost(walk.bits()) == case["total_with_minus1_quirk"]
        assert walk.bits()[0].tolist() == [8, -1]
        assert walk.bits()[-1].tolist() == [8, 8]
        first = walk.policy().layers[graph.layers[0].name]
        assert first == LayerPolicy(weight_bits=8)  # the image is left as it is


def test_corrected_the_input_costs_the_eight_bits_it_has(
    oracle: dict[str, Any], table: np.ndarray[Any, Any], graph: ModelGraph
) -> None:
    """The budget is then kept without the column that the -1 happened to hit."""
    for case in oracle["cases"]:
        limit = case["budget_ratio"] * oracle["uniform_totals"]["8"]
        corrected = walked(graph, table, case["budget_ratio"], case["min_bits"], faithful=False)
        bits = corrected.bits()
        assert corrected.steps == 2 * 51  # the ends are not asked for
        assert bits[0].tolist() == bits[-1].tolist() == [8, 8]
        total = sum(int(table[layer, weights - 1, reads - 1]) for layer, (weights, reads) in enumerate(bits.tolist()))
        assert corrected.budget.cost(bits) == total <= limit
        published = walked(graph, table, case["budget_ratio"], case["min_bits"], faithful=True).bits()
        difference = table[0, 7, 7] - table[0, 7, 6]
        assert difference > 0
        published_at_eight = published.copy()
        published_at_eight[0, 1] = 8
        assert (bits <= published_at_eight).all()  # it had more to take off


def test_the_table_through_its_backend_gives_the_same(
    oracles: Path, table: np.ndarray[Any, Any], graph: ModelGraph
) -> None:
    backend = TableFileBackend(oracles / TABLE, unit="cycles", batch=16)
    price = backend_price(backend, graph, (2, 5, 8), (2, 5, 8))
    bits = np.random.default_rng(0).choice([2, 5, 8], size=(7, 53, 2))
    assert price(bits).tolist() == table_price(table)(bits).tolist()


def resnet50() -> list[int]:
    """Weights of the convolutions and of the classifier, as torchvision orders them (He et al. 2016, Table 1)."""
    weights, channels = [7 * 7 * 3 * 64], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            weights += [channels * width, 9 * width * width, width * 4 * width]
            if block == 0:
                weights.append(channels * 4 * width)  # the projection of the shortcut
            channels = 4 * width
    return [*weights, channels * 1000]


def test_k_means_resnet50(oracle: dict[str, Any]) -> None:
    """Weights alone, every layer decided on, from 8 bits of 32."""
    expected = oracle["kmeans_resnet50"]
    weights = np.array(resnet50())
    assert len(weights) == expected["layers"]
    assert weights.sum() == expected["weights"]
    fixed = np.full((len(weights), 2), DECIDED)
    fixed[:, 1] = 32
    budget = BitBudget(
        lambda bits: bits[..., 0] @ weights,
        0.1 * 32 * float(weights.sum()),
        (range(1, 9), (32,)),
        fixed,
        faithful=True,
    )
    bits = budget.meet(budget.highest)
    assert bits[:, 0].tolist() == [expected["result_first_33"]] * 33 + [expected["result_last_21"]] * 21
    assert budget.cost(bits) == expected["bits"]
