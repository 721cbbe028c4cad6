"""What policies cost on average, against the average over all of them."""

from functools import reduce

import numpy as np
import pytest
import torch

from automl.costs.expected import ExpectedCosts, expected_costs, fitted
from automl.testing.points import elastic_space
from automl.testing.problems import cifar_resnet
from backends.point_prices import PointPrices
from search_spaces.building import SpaceOptions, build_space
from search_spaces.graph import ModelGraph
from search_spaces.objective import Constraint


def test_the_expectation_is_the_average_over_all_points() -> None:
    graph = cifar_resnet(8)
    space = build_space(graph, SpaceOptions(lower_bound=0.75))
    prices = PointPrices(space)
    points = np.array(list(np.ndindex(*space.counts.tolist())), dtype=np.int64)
    generator = np.random.default_rng(0)
    probabilities = [generator.dirichlet(np.ones(count)) for count in space.counts]
    weights = reduce(np.multiply, (each[points[:, number]] for number, each in enumerate(probabilities)))
    budgets = (Constraint("macs", 0.5 * graph.macs), Constraint("weight_bytes", 0.25 * graph.weight_bytes))
    costs = prices(points)
    wanted = [float(weights @ costs[each.metric]) / each.limit for each in budgets]
    found = expected_costs(prices, budgets, seed=0)([torch.from_numpy(each).float() for each in probabilities])
    assert found.tolist() == pytest.approx(wanted, rel=1e-5)


def test_a_cost_that_is_no_sum_is_fitted() -> None:
    """The latency made up here saturates: a layer takes no less than a third of what the whole layer does."""
    space, _ = elastic_space()
    whole = [layer.macs for layer in space.graph.layers]

    def latency(graph: ModelGraph) -> float:
        return sum(max(layer.macs, most / 3) for layer, most in zip(graph.layers, whole, strict=True)) / 1e9

    prices = PointPrices(space, latency=latency)
    points = np.stack([space.sample(np.random.default_rng(seed)) for seed in range(200)])
    truth = prices(points)["latency_s"]
    costs = ExpectedCosts([(fitted(prices, ["latency_s"], seed=0), [1.0])])
    eyes = [torch.eye(count) for count in space.counts.tolist()]
    found = [float(costs([eye[choice] for eye, choice in zip(eyes, point, strict=True)])[0]) for point in points]
    assert float(np.mean(np.abs(np.array(found) / truth - 1.0))) < 0.05
    limits = [Constraint("latency_s", 1e-3), Constraint("macs", 1e6)]  # of which one is a sum, and comes first
    even = [torch.full((count,), 1.0 / count) for count in space.counts.tolist()]
    macs, latency_s = expected_costs(prices, limits, seed=0)(even).tolist()
    assert latency_s == pytest.approx(truth.mean() / 1e-3, rel=0.03)
    assert macs == pytest.approx(float(prices(points)["macs"].mean()) / 1e6, rel=0.03)


def test_gradients_say_which_choice_costs_more() -> None:
    space, prices = elastic_space()
    logits = [torch.zeros(count, requires_grad=True) for count in space.counts.tolist()]
    costs = expected_costs(prices, [Constraint("macs", space.graph.macs)], seed=0)
    costs([each.softmax(dim=0) for each in logits]).sum().backward()  # type: ignore[no-untyped-call]
    for each in logits:
        assert each.grad is not None
        assert (each.grad.diff() > 0.0).all()  # choices stand in the order of what they cost
