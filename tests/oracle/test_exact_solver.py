"""HAWQ-V3's published bit allocations of ResNet-18 (Yao et al., ICML 2021), found exactly."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from automl.searchers.exact import solve
from backends.point_prices import Factor

BITS = (4, 8)


@pytest.fixture(scope="module")
def published(oracles: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((oracles / "hawq_v3_resnet18_ilp.json").read_text())
    return found


def costs(published: dict[str, Any], budget: str) -> np.ndarray[Any, Any]:
    """Of each layer at 4 and at 8 bits."""
    if budget == "latency":
        return np.array([published["latency_ms_w4"], published["latency_ms_w8"]]).T
    if budget == "size":
        return np.outer(published["params"], BITS) / 8 / 2**20
    return np.outer(published["macs"], [1 / 64, 1 / 16]) / 1e6


@pytest.mark.parametrize("budget", ["size", "bops", "latency"])
def test_the_published_allocation_bit_for_bit(published: dict[str, Any], budget: str) -> None:
    tied = {int(layer): leader for layer, leader in published["tied"].items()}
    trace, layers = np.array(published["trace"]), len(published["trace"])
    loss = trace[:, None] * np.array([published["delta_w4"], published["delta_w8"]]).T
    cost = costs(published, budget)
    leaders = [layer for layer in range(layers) if layer not in tied]
    decision = [leaders.index(tied.get(layer, layer)) for layer in range(layers)]
    losses = [sum(loss[layer] for layer in range(layers) if decision[layer] == each) for each in range(len(leaders))]
    factors = [Factor((decision[layer],), cost[layer][None]) for layer in range(layers)]
    low, high = cost.sum(axis=0)
    point = solve(losses, factors, [(low + high) / 2])
    assert point is not None
    assert [BITS[point[each]] for each in decision] == published["published"][f"{budget}_0.5"]["bits"]
    gained = sum(loss[layer, point[decision[layer]]] for layer in range(layers)) - loss[:, 0].sum()
    assert gained == pytest.approx(published["published"][f"{budget}_0.5"]["objective_minus_all4"], abs=1e-6)
