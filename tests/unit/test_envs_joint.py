"""The joint environment: steps in the order of the network, actions, budgets, state; ranks alone; both checkers."""

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as check_gymnasium
from stable_baselines3.common.env_checker import check_env as check_sb3
from torch import nn

import envs
from automl.testing.problems import GraphBuilder, cifar_resnet, conv_chain
from backends.point_prices import PointPrices
from envs.joint import NONE, JointWalk, LowRankWalk
from envs.observation import JOINT_FEATURES
from envs.point_budget import PointBudget
from search_spaces.building import SpaceOptions, build_space
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph
from search_spaces.objective import Constraint, Evaluation
from search_spaces.policy import CompressionPolicy
from search_spaces.space import SearchSpace

EVERYTHING: dict[str, Any] = {
    "weight_bits": (2, 4, 8),
    "activation_bits": (4, 8),
    "sparsity": (0.5, 0.75),
    "rank": (0.25, 0.5),
}


def space_of(graph: ModelGraph, **options: Any) -> SearchSpace:
    return build_space(graph, SpaceOptions(**options))


def budgets(graph: ModelGraph, macs: float = 0.5, size: float = 0.15) -> tuple[Constraint, ...]:
    return Constraint("macs", macs * graph.macs), Constraint("weight_bytes", size * graph.weight_bytes)


def walk_of(space: SearchSpace, constraints: tuple[Constraint, ...] | None = None, **options: Any) -> JointWalk:
    constraints = budgets(space.graph) if constraints is None else constraints
    return JointWalk(space, constraints, PointPrices(space), **options)


def walked(walk: JointWalk, actions: Any) -> np.ndarray[Any, Any]:
    return np.stack([walk.reset(), *(walk.step(action)[0] for action in actions)])


def random_walk(walk: JointWalk, seed: int = 0) -> np.ndarray[Any, Any]:
    walk.action_space.seed(seed)
    return walked(walk, [walk.action_space.sample() for _ in range(walk.steps)])


def names(walk: JointWalk) -> list[list[str]]:
    """The decisions of each step."""
    return [[walk.space.decisions[number].name for number in row if number != NONE] for row in walk.order]


def judged(policy: CompressionPolicy) -> Evaluation:
    """The more bits, the more accurate."""
    bits = sum(layer.weight_bits or 8 for layer in policy.layers.values())
    return Evaluation(min(1.0, 0.01 * bits), {"macs": 1.0}, 0.0, 0.0)


def branches() -> ModelGraph:
    """A sum of the stem and of a branch, whose last layer adds to the stem's channels."""
    builder = GraphBuilder()
    stem = builder.conv("stem", 16)
    builder.conv("inner", 16)
    builder.conv("sum", 16, into=stem)
    builder.linear("classifier", 10)
    return builder.build()


def test_a_layer_and_the_channels_that_it_is_the_first_to_read_are_one_step() -> None:
    space = space_of(branches(), weight_bits=(2, 8), activation_bits=(4, 8))
    walk = walk_of(space, ())
    assert walk.dimensions == ("channels", "weight_bits", "activation_bits")
    assert names(walk) == [
        ["stem.channels", "inner.weight_bits", "inner.activation_bits"],
        ["inner.channels", "sum.weight_bits", "sum.activation_bits"],
    ]
    assert walk.steps == 2
    alone = walk_of(space_of(branches(), weight_bits=(2, 8), layers=["inner"]), ())
    assert names(alone) == [["stem.channels", "inner.weight_bits"], ["inner.channels"]]
    assert alone.order.tolist() == [[0, 2], [1, NONE]]


def test_layers_that_are_tied_have_the_step_of_the_first() -> None:
    graph = cifar_resnet(8)
    pair = ["stage1.0.conv2", "stage1.0.shortcut"]
    space = space_of(graph, channels=False, weight_bits=(2, 4, 8), tie=[pair])
    walk = walk_of(space, ())
    assert names(walk)[3] == ["+".join(pair) + ".weight_bits"]
    assert walk.steps == len(space.decisions)
    walked(walk, [[1.0]] * 3 + [[-1.0]] + [[1.0]] * (walk.steps - 4))
    layers = walk.policy().layers
    assert [layers[name].weight_bits for name in pair] == [2, 2]
    assert layers["stem"].weight_bits == layers["classifier"].weight_bits == 8  # which the space has fixed


def test_the_resolution_of_the_images_is_decided_first() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    graph = PrunableNetwork(model, torch.zeros(1, 1, 16, 16), resolutions=((8, 8),)).graph
    space = space_of(graph, resolution=(0.5,), weight_bits=(2, 8), ends=True)
    walk = walk_of(space, (Constraint("macs", 0.5 * graph.macs),))
    assert walk.dimensions == ("resolution", "channels", "weight_bits")
    assert names(walk) == [["resolution"], ["0.weight_bits"], ["0.channels", "4.weight_bits"]]
    walked(walk, [[-1.0] * 3, [1.0] * 3, [1.0] * 3])
    assert walk.policy().resolution == (8, 8)


def test_every_choice_has_an_equal_part_of_the_actions() -> None:
    space = space_of(branches(), channels=False, weight_bits=(2, 4, 8), layers=["inner"])
    walk = walk_of(space, ())
    for action, number in ((-1.0, 0), (-0.34, 0), (-0.32, 1), (0.32, 1), (0.34, 2), (1.0, 2), (7.0, 2)):
        walked(walk, [[action]])
        assert walk.point().tolist() == [number]
        assert walk.taken() == pytest.approx([(-2 / 3, 0.0, 2 / 3)[number]])


def test_discrete_actions_are_the_numbers_of_parts() -> None:
    """Three choices of weights, two of activations; channels of a narrow group share the parts of a wide one."""
    space = space_of(branches(), channels=False, weight_bits=(2, 4, 8), activation_bits=(4, 8))
    walk = walk_of(space, (), discrete=True)
    assert walk.action_space == spaces.MultiDiscrete([3, 2])
    walked(walk, [np.array([0, 1]), np.array([2, 0])])
    assert walk.point().tolist() == [0, 1, 2, 0]
    assert walk.taken().tolist() == [2, 0]
    graph = cifar_resnet(8)
    channels = walk_of(space_of(graph, round_to=4), (), discrete=True)
    most = int(channels.space.counts.max())
    assert channels.action_space == spaces.Discrete(most)
    assert len(set(channels.space.counts.tolist())) > 1
    reached: list[set[int]] = [set() for _ in channels.space.decisions]
    for part in range(most):
        walked(channels, [part] * channels.steps)
        for found, number in zip(reached, channels.point().tolist(), strict=True):
            found.add(number)
    assert [len(found) for found in reached] == channels.space.counts.tolist()
    walk.reset()
    for wrong in ([3, 0], [0, -1], [0.5, 0.5], [0], 1):
        with pytest.raises(InputError, match="an action is whole numbers of MultiDiscrete"):
            walk.step(np.array(wrong))


@pytest.mark.parametrize("discrete", [False, True])
def test_the_outcome_keeps_all_budgets_and_its_revision_would_have_proposed_it(discrete: bool) -> None:
    graph = cifar_resnet(8)
    space = space_of(graph, **EVERYTHING)
    walk = walk_of(space, discrete=discrete)
    for seed in range(3):
        random_walk(walk, seed)
        point, policy, revised = walk.point(), walk.policy(), walk.revised()
        applied = graph.apply(policy)
        assert space.contains(policy)
        assert applied.macs <= 0.5 * graph.macs
        assert applied.weight_bytes <= 0.15 * graph.weight_bytes
        assert walked(walk, revised.actions).tolist() == revised.observations.tolist()
        assert walk.point().tolist() == point.tolist()


def chain_of_bits() -> SearchSpace:
    """Layers of 3 * 8 * 9, 8 * 8 * 9 and 8 * 8 * 9 weights."""
    return space_of(
        conv_chain((8, 8, 8), classes=4), channels=False, weight_bits=(2, 4, 8, 16), ends=True, layers=["conv*"]
    )


def test_what_is_above_a_budget_is_lowered_from_the_highest_of_equal_ones_from_the_last() -> None:
    """Three layers of convolutions; bytes of the weights alone, by a price of our own."""
    space = chain_of_bits()
    weights, bits = np.array([216, 576, 576]), np.array([2, 4, 8, 16])

    def prices(points: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        return {"weight_bytes": bits[points] @ weights / 8.0, "macs": np.full(len(points), 1.0)}

    def met(limit: float, point: list[int]) -> list[int]:
        return PointBudget(space, [Constraint("weight_bytes", limit)], prices).meet(np.array(point)).tolist()

    assert met(432 + 1152 + 1152, [3, 3, 3]) == [3, 3, 3]
    assert met(432 + 1152 + 576, [3, 3, 3]) == [3, 3, 2]
    assert met(432 + 1152 + 575, [3, 3, 3]) == [3, 2, 2]
    assert met(216 + 288 + 575, [1, 3, 2]) == [1, 2, 1]  # of the highest first, and the first is low already
    assert met(54 + 144 + 144, [3, 3, 3]) == [0, 0, 0]
    free = PointBudget(space, [Constraint("macs", 1.0)], prices)
    assert free.meet(np.array([3, 3, 3])).tolist() == [3, 3, 3]


def test_what_is_left_of_a_budget_is_spent_on_all_decisions_alike() -> None:
    graph = cifar_resnet(8)
    space = space_of(graph, **EVERYTHING)
    prices, limits = PointPrices(space), budgets(graph, 0.4, 0.2)
    budget = PointBudget(space, limits, prices)
    generator = np.random.default_rng(0)
    raised = 0
    for _ in range(50):
        point = generator.integers(0, space.counts)
        met, spent = budget.meet(point), budget.spend(point)
        assert all(prices(spent[None])[each.metric][0] <= each.limit for each in limits)
        above = space.counts - 1 - met
        shares = [(met + above * share // 32).tolist() for share in range(33)]
        assert spent.tolist() in shares
        found = shares.index(spent.tolist())
        raised += found > 0
        further = np.array([each for each in shares[found:] if each != spent.tolist()])
        if len(further):
            assert any(prices(further[:1])[each.metric][0] > each.limit for each in limits)
    assert raised > 10
    assert PointBudget(space, (), prices).spend(0 * space.counts).tolist() == [0] * len(space.counts)


def test_a_walk_that_spends_proposes_what_its_outcome_says() -> None:
    """So an agent that stores actions as taken learns of what was evaluated."""
    graph = cifar_resnet(8)
    space = space_of(graph, **EVERYTHING)
    walk = walk_of(space, budgets(graph, 0.5, 0.3), spend=True)
    walk.reset()
    done = False
    while not done:
        _, done = walk.step(np.full(walk.action_space.shape, -1.0))
    point = walk.point()
    assert point.sum() > 0  # the least of everything would leave most of the budgets
    revised = walk.revised()
    walk.reset()
    for action in revised.actions:
        walk.step(action)
    assert walk.point().tolist() == point.tolist()


def test_bits_that_a_budget_does_not_count_stay_as_they_are() -> None:
    graph = cifar_resnet(8)
    space = space_of(graph, channels=False, weight_bits=(2, 4, 8), activation_bits=(4, 6, 8))
    prices = PointPrices(space)
    found = PointBudget(space, [Constraint("weight_bytes", 0.12 * graph.weight_bytes)], prices).meet(space.greatest)
    weights = np.array([each.dimension == "weight_bits" for each in space.decisions])
    assert (found[~weights] == 2).all()
    assert found[weights].max() - found[weights].min() <= 1
    assert prices(found[None])["weight_bytes"][0] <= 0.12 * graph.weight_bytes


def test_a_proposal_within_the_budgets_is_left_as_it_is() -> None:
    graph = cifar_resnet(8)
    walk = walk_of(space_of(graph, **EVERYTHING), budgets(graph, 1.0, 1.0))
    random_walk(walk, 1)
    proposed = walk.point()
    free = walk_of(walk.space, ())
    random_walk(free, 1)
    assert free.point().tolist() == proposed.tolist()


def test_the_state_tells_layers_decisions_and_what_the_budgets_leave() -> None:
    """By hand where two layers, of 3 * 16 * 9 and 16 * 16 * 9 weights, have 4 or 8 bits."""
    builder = GraphBuilder(size=8)
    builder.conv("first", 16)
    builder.conv("second", 16)
    graph = builder.build()
    space = space_of(graph, channels=False, weight_bits=(4, 8), ends=True)
    rest = graph.weight_bytes - 4 * (432 + 2304) + 2 * 16 * 4  # of what stays float32, and a scale for each channel
    limit = rest + 432 + 1152 + 100
    walk = JointWalk(space, (Constraint("weight_bytes", limit),), PointPrices(space), step_code=True)
    whole = rest + 432 + 2304
    static = [[0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0, 0, 1, 1, 0]]
    assert len(JOINT_FEATURES) == 10
    observations = walked(walk, [[1.0], [-1.0]])
    left = (limit - rest - (216 + 1152)) / (432 + 2304 - 216 - 1152), (limit - rest - (432 + 1152)) / 1152
    expected = [
        # of the layer, the last bits, whether this step decides on bits, its number, removed, left
        [*static[0], 1.0, 1.0, 1, 0, 0.0, left[0]],
        [*static[1], 1.0, 1.0, 0, 1, 0.0, left[1]],
        [*static[1], 0.5, 1.0, 0, 1, 1152 / whole, 1.0],
    ]
    assert observations == pytest.approx(np.array(expected), abs=1e-6)
    assert walk.point().tolist() == [1, 0]


def test_an_episode_asks_for_few_prices() -> None:
    """Once a step, some halvings at the end, and once for the revision: a look-up in a table takes its time."""
    graph = cifar_resnet(8)
    space = space_of(graph, **EVERYTHING)
    prices = PointPrices(space)
    asked: list[int] = []

    def counted(points: np.ndarray[Any, Any]) -> Any:
        asked.append(len(points))
        return prices(points)

    walk = JointWalk(space, budgets(graph), counted)
    asked.clear()
    random_walk(walk)
    assert asked[: walk.steps] == [2] * walk.steps
    assert len(asked) <= walk.steps + 2 * (1 + int(space.counts.sum()).bit_length()) + 1  # two budgets, and a check
    asked.clear()
    walk.revised()
    assert asked == [2 * (walk.steps + 1)]


def test_the_size_of_the_state_does_not_depend_on_the_network() -> None:
    sizes = set()
    for graph in (cifar_resnet(8), cifar_resnet(20), branches()):
        walk = walk_of(space_of(graph, **EVERYTHING))
        sizes.add(walk.observation_space.shape)
        observations = random_walk(walk)
        assert observations.min() >= 0.0
        assert observations.max() <= 1.0
    assert sizes == {(10 + 2 * 5 + 2 * 2,)}


@pytest.mark.parametrize(
    ("name", "options"),
    [("Joint", EVERYTHING), ("Joint", {}), ("LowRank", {"channels": False, "rank": (0.25, 0.5)})],
    ids=["everything", "channels", "ranks"],
)
@pytest.mark.parametrize("discrete", [False, True])
def test_both_checkers_pass_without_a_warning(name: str, options: dict[str, Any], discrete: bool) -> None:
    assert envs.__name__ == "envs"  # importing the package registered the environments
    graph = cifar_resnet(8)
    space = space_of(graph, **options)
    env = gymnasium.make(
        f"trimtab/{name}-v0",
        space=space,
        constraints=(Constraint("params", 0.7 * graph.params),),
        prices=PointPrices(space),
        evaluator=judged,
        discrete=discrete,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_gymnasium(env.unwrapped)
        check_sb3(env)


def test_misuse_is_refused() -> None:
    graph = cifar_resnet(8)
    space = space_of(graph, **EVERYTHING)
    with pytest.raises(InputError, match=r"budget of .* cannot be kept, the cheapest policy of the space needs"):
        walk_of(space, budgets(graph, 0.5, 1e-4))
    ranks = space_of(graph, channels=False, rank=(0.25, 0.5))
    LowRankWalk(ranks, (), PointPrices(ranks))
    with pytest.raises(InputError, match="ranks alone: this one has activation_bits, channels, sparsity, weigh"):
        LowRankWalk(space, (), PointPrices(space))
    walk = walk_of(ranks, ())
    for wrong in ([np.nan], [0.1, 0.2], []):
        with pytest.raises(InputError, match="an action is 1 finite numbers"):
            walk.step(np.array(wrong))
    walked(walk, [[0.0]] * walk.steps)
    with pytest.raises(InputError, match="reset it"):
        walk.step(np.array([0.0]))
