"""The joint space of channels, bits, zeros and ranks: points, policies, and what repair promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.testing.problems import cifar_resnet, mobilenet_v1
from backends.accelerators.backend import AcceleratorBackend
from backends.accelerators.catalogue import load
from backends.point_prices import PointPrices
from search_spaces.building import SpaceOptions, build_space
from search_spaces.errors import InputError
from search_spaces.objective import Constraint
from search_spaces.space import SearchSpace

OPTIONS = (
    SpaceOptions(weight_bits=(2, 4, 8), activation_bits=(4, 8), sparsity=(0.5, "2:4"), rank=(0.25, 0.5)),
    SpaceOptions(weight_bits=(3, 8, None), activation_bits=(3, 8, None), coupled_bits=True, ends=True),
    SpaceOptions(channels=False, sparsity=(0.9, 0.6), pattern="filter", rank=(0.3,), factorisation="spatial_svd"),
    SpaceOptions(channels=False, weight_bits=(1, 2), layers=("stage1.*",), tie=(("stage1.0.conv1", "stage1.0.conv2"),)),
    SpaceOptions(lower_bound=0.5),
    SpaceOptions(keep=(0.6667, 0.25), weight_bits=(4, 8)),
)
SPACES = [build_space(cifar_resnet(8), options) for options in OPTIONS]
SPACES.append(build_space(mobilenet_v1(size=32), OPTIONS[0]))
SPACES.append(
    build_space(
        cifar_resnet(8).knowing([cifar_resnet(8, size=16), cifar_resnet(8, size=24)]),
        SpaceOptions(resolution=(0.5, 24, 1.0), weight_bits=(4, 8), sparsity=("2:4",)),
    )
)
PRICES = [PointPrices(space) for space in SPACES]
METRICS = ("macs", "params", "weight_bytes")

seeds = st.integers(0, 2**32 - 1)
numbers = st.integers(0, len(SPACES) - 1)


@settings(max_examples=60)
@given(numbers, seeds)
def test_points_and_policies_are_each_others(number: int, seed: int) -> None:
    space = SPACES[number]
    point = space.sample(np.random.default_rng(seed))
    policy = space.decode(point)
    assert (space.encode(policy) == point).all()
    assert space.contains(policy)


@settings(max_examples=40)
@given(numbers, seeds)
def test_prices_are_those_of_the_graph(number: int, seed: int) -> None:
    space, generator = SPACES[number], np.random.default_rng(seed)
    points = np.array([space.sample(generator) for _ in range(3)])
    costs = PRICES[number](points)
    for index, point in enumerate(points):
        graph = space.graph.apply(space.decode(point))
        counted = (graph.macs, graph.params, graph.weight_bytes)
        assert tuple(costs[metric][index] for metric in METRICS) == counted


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 7])
def test_factors_add_up_to_the_prices(number: int) -> None:
    space, generator = SPACES[number], np.random.default_rng(1)
    accelerator = AcceleratorBackend("cpu", load("cpu_avx512")).prices(space.graph)
    prices = PointPrices(space, accelerator)
    metrics = (*METRICS, "modelled_latency_s", "energy_j")
    factors = prices.factors(metrics)
    for _ in range(20):
        point = space.sample(generator)
        costs = prices(point[None])
        parts = [factor.costs[(slice(None), *(point[each] for each in factor.decisions))] for factor in factors]
        assert np.sum(parts, axis=0) == pytest.approx([costs[metric][0] for metric in metrics], rel=1e-9)
    with pytest.raises(InputError, match="'latency_s' is no sum over layers"):
        prices.factors(["latency_s"])


@settings(max_examples=80)
@given(numbers, seeds, st.lists(st.tuples(st.sampled_from(METRICS), st.floats(0.0, 1.0)), min_size=1, max_size=3))
def test_repair_is_feasible_and_leaves_the_feasible_alone(
    number: int, seed: int, budgets: list[tuple[str, float]]
) -> None:
    space, prices = SPACES[number], PRICES[number]
    least, whole = prices(space.least[None]), prices(space.greatest[None])
    constraints = [
        Constraint(metric, float(least[metric][0] + share * (whole[metric][0] - least[metric][0])))  # type: ignore[arg-type]
        for metric, share in budgets
    ]
    point = space.sample(np.random.default_rng(seed))
    repaired = space.repair(point, constraints, prices)
    cost = {metric: float(values[0]) for metric, values in prices(repaired[None]).items()}
    assert all(constraint.violation(cost) == 0.0 for constraint in constraints)
    assert (repaired <= point).all()
    assert (space.repair(repaired, constraints, prices) == repaired).all()
    before = {metric: float(values[0]) for metric, values in prices(point[None]).items()}
    if all(constraint.violation(before) == 0.0 for constraint in constraints):
        assert (repaired == point).all()


@settings(max_examples=40)
@given(numbers, seeds, st.floats(0.0, 1.0))
def test_variation_stays_in_the_space(number: int, seed: int, rate: float) -> None:
    space, generator = SPACES[number], np.random.default_rng(seed)
    first, second = space.sample(generator), space.sample(generator)
    mutant, child = space.mutate(first, generator, rate), space.crossover(first, second, generator)
    for point in (mutant, child, *space.neighbours(first)):
        space.decode(point)
    assert (mutant != first).any()
    assert ((child == first) | (child == second)).all()
    assert all(int(np.abs(other - first).sum()) == 1 for other in space.neighbours(first))


@pytest.mark.parametrize("number", range(len(SPACES)))
def test_nothing_costs_less_than_the_floor(number: int) -> None:
    """Not even where two decisions work against each other."""
    space, generator = SPACES[number], np.random.default_rng(0)
    for metric in METRICS:
        constraint = Constraint(metric, 1.0)  # type: ignore[arg-type]
        least = PRICES[number](space.floor([constraint], PRICES[number])[None])[metric][0]
        points = np.array([space.sample(generator) for _ in range(200)])
        small = np.minimum(points, generator.integers(0, 2, points.shape))
        assert (PRICES[number](np.concatenate([points, small, space.least[None]]))[metric] >= least).all()


def test_a_budget_out_of_reach_is_refused_with_the_least_of_each_constraint() -> None:
    constraints = [Constraint("weight_bytes", 10.0), Constraint("macs", 10.0), Constraint("params", 1e9)]
    with pytest.raises(InputError, match=r"10 bytes cannot be kept.* needs [\d,]+ bytes .*; 10 MACs cannot be kept"):
        SPACES[0].repair(SPACES[0].greatest, constraints, PRICES[0])


def test_sizes() -> None:
    space = build_space(cifar_resnet(8), SpaceOptions(channels=False, weight_bits=(2, 4, 8), activation_bits=(4, 8)))
    inner = len(space.graph.full_layers) - 2
    assert space.size == 3**inner * 2**inner
    assert len(space.decisions) == 2 * inner
    assert {space.fixed[name].weight_bits for name in space.fixed} == {8}
    assert not space.channels_only
    assert SearchSpace.of_channels(SPACES[4].channels).channels_only


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"channels": False}, "there is nothing to decide"),
        ({"weight_bits": (4,), "layers": ("head*",)}, "no layer matches space.layers 'head*'"),
        ({"weight_bits": (4, 8), "tie": (("stem", "nowhere"),)}, "names a layer 'nowhere'"),
        ({"weight_bits": (4, 8), "tie": (("stem",), ("stem",))}, "names layer 'stem' twice"),
        ({"weight_bits": (4,), "activation_bits": (8,), "coupled_bits": True}, "coupled_bits takes one list for both"),
        ({"sparsity": ("half",)}, "shares of zeros, or patterns 'N:M', got 'half'"),
        ({"sparsity": (1.5,)}, "a share of its weights in"),
        ({"rank": (1.5,)}, "a rank is a share of the full one in (0, 1), got 1.5"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as refusal:
        build_space(cifar_resnet(8), SpaceOptions(**options))  # type: ignore[arg-type]
    assert said in str(refusal.value)


@pytest.mark.parametrize("point", [[0], [0.5] * 3, "no"])
def test_what_is_no_point_is_refused(point: object) -> None:
    with pytest.raises(InputError, match="a point is"):
        SPACES[0].decode(point)  # type: ignore[arg-type]
    outside = SPACES[0].greatest + 1
    with pytest.raises(InputError, match="has the choices 0 to"):
        SPACES[0].decode(outside)
