"""Walks over captured networks: concatenation, shuffles, depthwise and residual sums, priced and bounded exactly."""

import numpy as np
import pytest
import torch

from automl.models import build_model
from automl.searchers import make_searcher
from backends.counting import CountingBackend
from envs.channel_pruning import ChannelPruningWalk
from envs.pricing import CountedCost
from search_spaces.capture import PrunableNetwork
from search_spaces.channel_space import ChannelSpace
from search_spaces.objective import Constraint, Metric

METRICS: list[Metric] = ["macs", "params", "weight_bytes"]


@pytest.mark.parametrize("name", ["densenet40", "shufflenet_v2", "squeezenet"])
def test_prices_and_bounds_on_a_captured_network(name: str) -> None:
    model = build_model(name, {}, classes=10, input_shape=(3, 32, 32))
    graph = PrunableNetwork(model, torch.zeros(1, 3, 32, 32), prove=False).graph
    space = ChannelSpace.build(graph)
    generator = np.random.default_rng(0)
    backend = CountingBackend()
    for metric in METRICS:
        price = CountedCost(graph, metric)
        for kept in (space.least, space.sample(generator), [group.width for group in graph.groups]):
            assert price(kept) == backend.estimate(graph.with_kept(kept)).as_metrics()[metric]
        constraint = Constraint(metric, 0.4 * price([group.width for group in graph.groups]))
        searcher = make_searcher("random", space=space, constraint=constraint, seed=0, evaluations=4)
        for _ in range(4):
            cost = backend.estimate(graph.apply(searcher.ask())).as_metrics()
            assert cost[metric] <= constraint.limit
    walk = ChannelPruningWalk(space, constraint)
    position = {layer.name: index for index, layer in enumerate(graph.layers)}
    reads = [position[graph.groups[group].consumers[0]] for group in walk.order]
    assert reads == sorted(reads)
