"""Bounding never overshoots, prices are exact, and the faithful mode is Algorithm 1 written down a second time."""

import zlib
from collections.abc import Sequence
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st

from automl.searchers.uniform import uniform_policy
from automl.testing.problems import GraphBuilder
from backends.counting import CountingBackend
from envs.channel_pruning import ChannelPruningWalk
from envs.pricing import CountedCost, TabulatedCost, TightestCost
from search_spaces.channel_space import ChannelSpace
from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph
from search_spaces.objective import Constraint, Metric

METRICS: list[Metric] = ["macs", "params", "weight_bytes"]
widths = st.integers(2, 70)


@st.composite
def chains(draw: st.DrawFn) -> ModelGraph:
    """Convolutions one after the other, some of them with a depthwise one in front."""
    builder = GraphBuilder(size=draw(st.integers(8, 40)))
    for index in range(draw(st.integers(1, 6))):
        if index and draw(st.booleans()):
            builder.conv(f"depthwise{index}", width, depthwise=True, stride=draw(st.integers(1, 2)))  # noqa: F821
        width = draw(widths)
        builder.conv(f"conv{index}", width, kernel=draw(st.sampled_from([1, 3, 5])), stride=draw(st.integers(1, 2)))
    builder.linear("classifier", draw(st.integers(2, 20)))
    return builder.build()


@st.composite
def residual(draw: st.DrawFn) -> ModelGraph:
    """Blocks whose sums tie layers together, so that a layer may read and write the same group."""
    builder = GraphBuilder(size=draw(st.integers(8, 32)))
    trunk_width = draw(widths)
    trunk = builder.conv("stem", trunk_width)
    for index in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            builder.conv(f"inner{index}", draw(widths))
        builder.conv(f"sum{index}", trunk_width, into=trunk)
    builder.linear("classifier", 10)
    return builder.build()


graphs = st.one_of(chains(), residual())
actions = st.lists(st.floats(-1.0, 1.0, width=32), min_size=12, max_size=12)


def walked(walk: ChannelPruningWalk, proposals: list[float]) -> tuple[int, ...]:
    walk.reset()
    for step in range(walk.steps):
        observation, done = walk.step(np.array([proposals[step % len(proposals)]], dtype=np.float32))
        assert walk.observation_space.contains(observation)
        assert done == (step == walk.steps - 1)
    return walk.kept()


def build_space(graph: ModelGraph, lower_bound: float, round_to: int | None) -> ChannelSpace:
    """The space; networks too narrow for it are not looked at."""
    try:
        return ChannelSpace.build(graph, lower_bound, round_to)
    except InputError:
        reject()


@settings(max_examples=150)
@given(
    graphs, actions, st.floats(0.0, 1.0), st.sampled_from(METRICS), st.floats(0.05, 0.6), st.sampled_from([None, 1, 8])
)
def test_no_actions_overshoot_the_budget(
    graph: ModelGraph,
    proposals: list[float],
    position: float,
    metric: Metric,
    lower_bound: float,
    round_to: int | None,
) -> None:
    space = build_space(graph, lower_bound, round_to)
    price = CountingBackend().estimate
    least = price(graph.with_kept(space.least)).as_metrics()[metric]
    whole = price(graph).as_metrics()[metric]
    constraint = Constraint(metric, least + position * (whole - least))
    walk = ChannelPruningWalk(space, constraint)
    kept = walked(walk, proposals)
    cost = price(graph.with_kept(kept)).as_metrics()
    assert cost[metric] <= constraint.limit
    assert constraint.violation(cost) == 0.0
    assert all(units in space.choices(group) for group, units in enumerate(kept))
    assert graph.apply(walk.policy()).kept == kept
    # The bound is tight: no group could keep its next larger number of units at its turn.
    asked = walked(walk, [1.0])
    bounded = list(space.least)
    for group in walk.order:
        for units in space.choices(group):
            bounded[group] = units
            affordable = price(graph.with_kept(bounded)).as_metrics()[metric] <= constraint.limit
            assert affordable == (units <= asked[group])
        bounded[group] = asked[group]


@settings(max_examples=60)
@given(graphs, actions, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_no_actions_overshoot_any_of_several_budgets(
    graph: ModelGraph, proposals: list[float], first: float, second: float
) -> None:
    space = build_space(graph, 0.2, 1)
    price = CountingBackend().estimate
    least, whole = price(graph.with_kept(space.least)).as_metrics(), price(graph).as_metrics()
    positions: dict[Metric, float] = {"macs": first, "params": second}
    constraints = [Constraint(name, least[name] + at * (whole[name] - least[name])) for name, at in positions.items()]
    cost = TightestCost([CountedCost(graph, each.metric) for each in constraints], [each.limit for each in constraints])
    kept = walked(ChannelPruningWalk(space, constraints[0], cost=cost), proposals)
    found = price(graph.with_kept(kept)).as_metrics()
    assert all(found[each.metric] <= each.limit for each in constraints)


@settings(max_examples=60)
@given(graphs, st.sampled_from(METRICS), st.data())
def test_prices_equal_the_counting_backend(graph: ModelGraph, metric: Metric, data: st.DataObject) -> None:
    kept = [data.draw(st.integers(1, group.width)) for group in graph.groups]
    cost = CountedCost(graph, metric)
    assert cost(kept) == CountingBackend().estimate(graph.with_kept(kept)).as_metrics()[metric]
    if metric == "macs":
        real = [data.draw(st.floats(0.01, group.width)) for group in graph.groups]
        assert cost(real) == pytest.approx(graph.real_macs(real), rel=1e-12)
    group = data.draw(st.integers(0, len(kept) - 1))
    c0, c1, c2 = cost.along(np.array(kept, dtype=np.float64), group)
    assert c0 + c1 * kept[group] + c2 * kept[group] ** 2 == cost(kept)


class Bumpy:
    """Prices as a measured table gives them: up to 5 % off a monotone cost, the same for the same units."""

    def __init__(self, graph: ModelGraph, salt: int) -> None:
        self._counted = CountedCost(graph, "macs")
        self._salt = salt
        self.asked: set[tuple[int, ...]] = set()

    def __call__(self, kept: Sequence[int]) -> float:
        assert all(isinstance(units, int) for units in kept)
        self.asked.add(tuple(kept))
        bump = zlib.crc32(repr((self._salt, *kept)).encode()) / 2**32
        return 1e-9 * self._counted(kept) * (1.0 + 0.05 * bump)


@settings(max_examples=100)
@given(graphs, actions, st.floats(0.0, 1.0), st.integers(0, 2**32), st.sampled_from([None, 1, 8]))
def test_no_actions_overshoot_a_budget_of_measured_prices(
    graph: ModelGraph, proposals: list[float], position: float, salt: int, round_to: int | None
) -> None:
    space = build_space(graph, 0.2, round_to)
    price = Bumpy(graph, salt)
    whole = price(tuple(group.width for group in graph.groups))
    least = price(space.least)
    constraint = Constraint("latency_s", least + position * max(0.0, whole - least))
    cost = TabulatedCost(price, graph, {layer.name: float(layer.macs) for layer in graph.layers})
    walk = ChannelPruningWalk(space, constraint, cost=cost)
    price.asked.clear()
    kept = walked(walk, proposals)
    assert price(kept) <= constraint.limit
    assert all(units in space.choices(group) for group, units in enumerate(kept))
    # few networks are priced: two ends and a bisection for each group, and what the agent is shown
    assert len(price.asked) <= sum(3 + ceil(np.log2(len(space.choices(group)))) for group in walk.order) + 1
    uniform = graph.kept_units(uniform_policy(space, constraint, cost))
    assert price(uniform) <= constraint.limit
    generous = ChannelPruningWalk(space, Constraint("latency_s", 2.0 * whole), cost=cost)
    assert walked(generous, [1.0]) == tuple(group.width for group in graph.groups)


def algorithm_1(
    graph: ModelGraph, proposals: list[float], budget: float, lower_bound: float, round_to: int
) -> list[int]:
    """AMC's published bounding, layer by layer: input and output ratios, depthwise layers as buffers of the next."""
    flops, buffers, inputs, buffered = [], [], [], 0.0
    for layer in graph.layers:
        if layer.depthwise:
            buffered += layer.macs
        else:
            flops.append(layer.macs)
            buffers.append(buffered)
            inputs.append(layer.in_channels)
            buffered = 0.0
    count = len(flops)
    ratio_in = [1.0] + [lower_bound] * (count - 1)
    ratio_out = [lower_bound] * (count - 1) + [1.0]
    kept = []
    for layer in range(1, count):  # the first one reads the image
        rest = sum(
            flops[i] * ratio_in[i] * ratio_out[i] + buffers[i] * ratio_in[i]
            for i in range(count)
            if i not in (layer - 1, layer)
        )
        rest += buffers[layer - 1] * ratio_in[layer - 1]
        share = flops[layer - 1] * ratio_in[layer - 1] + flops[layer] * ratio_out[layer] + buffers[layer]
        ratio = max(min(proposals[layer - 1], (budget - rest) / share), lower_bound)
        channels = inputs[layer]
        if ratio == 1.0:
            units = channels
        else:
            units = ceil(max(int(np.around(channels * ratio)), 1) / round_to) * round_to
            if units > channels:
                units = floor(channels / round_to) * round_to
        ratio_in[layer] = ratio_out[layer - 1] = units / channels
        kept.append(units)
    return kept


@settings(max_examples=150)
@given(
    chains(),
    st.lists(st.floats(0.0, 1.0, width=32), min_size=6, max_size=6),
    st.floats(0.05, 1.0),
    st.floats(0.05, 0.5),
    st.sampled_from([1, 2, 4, 8]),
)
def test_faithful_walk_is_algorithm_1(
    graph: ModelGraph, proposals: list[float], budget_ratio: float, lower_bound: float, round_to: int
) -> None:
    assume(all(group.width >= round_to for group in graph.groups))  # the published code would keep no channel at all
    space = build_space(graph, lower_bound, round_to)
    budget = max(budget_ratio * graph.macs, float(graph.with_kept(space.least).macs))
    walk = ChannelPruningWalk(space, Constraint("macs", budget), faithful=True)
    for step in range(walk.steps):
        walk.keep(proposals[step])
    assert list(walk.kept()) == algorithm_1(graph, proposals, budget, lower_bound, round_to)


@settings(max_examples=60)
@given(graphs, st.floats(0.0, 1.0), st.sampled_from(METRICS))
def test_uniform_keeps_the_largest_ratio_within_the_budget(graph: ModelGraph, position: float, metric: Metric) -> None:
    space = build_space(graph, 0.2, None)
    cost = CountedCost(graph, metric)
    whole = [group.width for group in graph.groups]
    limit = cost(space.least) + position * (cost(whole) - cost(space.least))
    kept = graph.kept_units(uniform_policy(space, Constraint(metric, limit)))
    assert cost(kept) <= limit

    def units(ratio: float) -> list[int]:
        return [max(least, floor(ratio * width + 1e-9)) for least, width in zip(space.least, whole, strict=True)]

    candidates = [units(ratio) for ratio in np.linspace(0.0, 1.0, 200)]
    assert max(cost(counts) for counts in candidates if cost(counts) <= limit) <= cost(kept)
