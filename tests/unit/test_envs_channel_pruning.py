"""The channel-pruning environment: Gymnasium's and stable-baselines3's contracts, observations, rewards, both modes."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as check_gymnasium
from stable_baselines3.common.env_checker import check_env as check_sb3

import envs
from automl.testing.problems import AdditiveEvaluator, GraphBuilder, cifar_resnet, conv_chain, mobilenet_v1
from envs.channel_pruning import ChannelPruningEnv, ChannelPruningWalk
from envs.observation import FEATURES
from envs.pricing import TabulatedCost
from envs.reward import REWARDS, find_reward
from search_spaces.channel_space import ChannelSpace
from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph
from search_spaces.objective import Constraint, Evaluation
from search_spaces.policy import CompressionPolicy


def make(graph: ModelGraph, **changes: Any) -> gymnasium.Env[Any, Any]:
    constraint = Constraint("macs", 0.5 * graph.macs)
    arguments = {
        "space": ChannelSpace.build(graph),
        "constraint": constraint,
        "evaluator": AdditiveEvaluator(graph, constraint),
        **changes,
    }
    return gymnasium.make("trimtab/ChannelPruning-v0", graph=graph, **arguments)


@pytest.mark.parametrize(
    "options",
    [{}, {"faithful": True}, {"mode": "accuracy", "reward": "accuracy_flops"}, {"discrete": True}],
    ids=["resource", "faithful", "accuracy", "discrete"],
)
@pytest.mark.parametrize("graph", [conv_chain(), cifar_resnet(8), conv_chain((16,))], ids=["chain", "resnet", "single"])
def test_both_checkers_pass_without_a_warning(graph: ModelGraph, options: dict[str, Any]) -> None:
    assert envs.__name__ == "envs"  # importing the package registered the environment
    env = make(graph, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_gymnasium(env.unwrapped)
        check_sb3(env)


def test_an_episode_ends_with_the_evaluation_of_its_policy() -> None:
    graph = cifar_resnet(8)
    env = make(graph)
    env.reset(seed=0)
    walk = env.unwrapped.walk  # type: ignore[attr-defined]
    kept, taken = [], []
    for step in range(walk.steps):
        observation, reward, terminated, truncated, info = env.step(np.array([0.3], dtype=np.float32))
        assert env.observation_space.contains(observation)
        assert terminated == (step == walk.steps - 1)
        assert not truncated
        if not terminated:
            assert reward == 0.0
            assert info.keys() == {"taken"}
        group = walk.order[step]
        kept.append(walk.kept()[group] / graph.groups[group].width)
        taken.append(info["taken"])
    walk.reset()
    for ratio, action in zip(kept, taken, strict=True):  # the action that was taken would have led to the same
        assert walk.ratio(float(action[0])) == pytest.approx(ratio)
        walk.step(action)
    assert walk.policy() == info["policy"]
    pruned = graph.apply(info["policy"])
    assert info["evaluation"].feasible
    assert reward == info["evaluation"].accuracy
    assert info["cost"]["macs"] == pruned.macs <= 0.5 * graph.macs


def test_observations_are_the_eleven_features_of_the_first_consumer() -> None:
    graph = mobilenet_v1()
    space = ChannelSpace.build(graph, 0.2, 8)
    walk = ChannelPruningWalk(space, Constraint("macs", 0.5 * graph.macs))
    assert len(FEATURES) == 11
    layers = [graph.layer(f"pw{index}") for index in range(13)] + [graph.layer("classifier")]
    macs = np.array([layer.macs for layer in layers])
    position = {layer.name: index for index, layer in enumerate(graph.layers)}
    observation = walk.reset()
    units = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
    kept: list[int] = []
    for step, layer in enumerate(layers):
        rest = sum(later.macs for later in graph.layers[position[layer.name] + 1 :])
        expected = [
            step / 13,
            (layer.out_channels - 64) / (1024 - 64),
            (layer.in_channels - 32) / (1024 - 32),
            ((layer.input_size or (1,))[0] - 1) / (112 - 1),
            ((layer.input_size or (1,))[0] - 1) / (112 - 1),
            (layer.stride or (0,))[0],
            0.0,  # every one of them is 1 x 1
            (layer.macs - macs.min()) / (macs.max() - macs.min()),
            1.0 - graph.with_kept([*kept, *units[step:]]).macs / graph.macs,
            rest / graph.macs,
            kept[-1] / units[step - 1] if step else 1.0,
        ]
        assert observation == pytest.approx(np.array(expected), abs=1e-6)
        assert observation.dtype == np.float32
        observation, _ = walk.keep(0.6)
        kept = list(walk.kept()[: step + 1])


def test_under_a_latency_budget_the_shares_are_those_of_the_latency() -> None:
    graph = conv_chain()
    seconds = {layer.name: 1e-4 * (1 + index) for index, layer in enumerate(graph.layers)}
    widths = [group.width for group in graph.groups]

    def price(kept: Sequence[int]) -> float:
        return sum(seconds.values()) * sum(kept) / sum(widths)

    constraint = Constraint("latency_s", 0.5 * price(widths))
    cost = TabulatedCost(price, graph, seconds)
    walk = ChannelPruningWalk(ChannelSpace.build(graph, 0.2, 2), constraint, cost=cost)
    reduced, rest = FEATURES.index("reduced"), FEATURES.index("rest")
    first = walk.reset()
    assert first[[reduced, rest]] == pytest.approx([0.0, sum(list(seconds.values())[2:]) / sum(seconds.values())])
    second, _ = walk.keep(0.5)
    assert second[reduced] == pytest.approx(1.0 - price(walk.kept()) / price(widths))
    with pytest.raises(InputError, match="got metric 'latency_s'"):
        ChannelPruningWalk(ChannelSpace.build(graph), constraint)
    with pytest.raises(InputError, match=r"budget of 1.00 µs cannot be kept: the cheapest policy of the space needs"):
        ChannelPruningWalk(ChannelSpace.build(graph), Constraint("latency_s", 1e-6), cost=cost)


def test_protected_groups_are_no_decision_and_stay_whole() -> None:
    graph = cifar_resnet(8)
    space = ChannelSpace.build(graph, protect=["stem", "stage1.*"])
    for faithful in (False, True):
        walk = ChannelPruningWalk(space, Constraint("macs", 0.6 * graph.macs), faithful=faithful)
        names = [graph.groups[group].name for group in walk.order]
        assert names == ["stage0.0.conv1", "stage2.0.conv1", "stage2.0.conv2"]
        while not walk.keep(0.1)[1]:
            pass
        whole = {group.name for group, kept in zip(graph.groups, walk.kept(), strict=True) if kept == group.width}
        assert whole == {group.name for group in graph.groups} - set(names)


def test_decisions_follow_the_first_consumer_not_the_producer() -> None:
    builder = GraphBuilder()
    stem = builder.conv("stem", 16)
    builder.conv("inner", 16)
    builder.conv("sum", 16, into=stem)
    builder.linear("classifier", 10)
    graph = builder.build()
    walk = ChannelPruningWalk(ChannelSpace.build(graph), Constraint("macs", 0.5 * graph.macs))
    assert [graph.groups[group].name for group in walk.order] == ["stem", "inner"]


def test_ratio_and_action_are_inverse() -> None:
    graph = conv_chain()
    constraint = Constraint("macs", 0.5 * graph.macs)
    space = ChannelSpace.build(graph, 0.3, 2)
    walk = ChannelPruningWalk(space, constraint)
    least = space.least[0] / graph.groups[0].width
    assert (walk.ratio(-1.0), walk.ratio(1.0)) == pytest.approx((least, 1.0))
    faithful = ChannelPruningWalk(space, constraint, faithful=True)
    assert (faithful.ratio(-1.0), faithful.ratio(1.0)) == (0.0, 1.0)
    for ratio in (0.4, 0.8):
        assert walk.ratio(walk.action(ratio)) == pytest.approx(ratio)
        assert faithful.ratio(faithful.action(ratio)) == pytest.approx(ratio)


def test_discrete_actions_reach_every_choice_of_every_group() -> None:
    """Groups of 16, 32 and 64 channels in steps of 4 have 4, 7 and 13 choices; a narrow one shares the numbers."""
    graph = conv_chain()
    space = ChannelSpace.build(graph, 0.2, 4)
    walk = ChannelPruningWalk(space, Constraint("macs", float(graph.macs)), discrete=True)
    assert walk.action_space == spaces.Discrete(13)
    reached: list[list[int]] = [[], [], []]
    for number in range(13):
        walk.reset()
        done = False
        while not done:
            _, done = walk.step(number)
            taken = walk.taken()
            again = ChannelPruningWalk(space, Constraint("macs", float(graph.macs)), discrete=True)
            for kept in walk.kept()[: walk._step - 1]:
                again.keep(kept / graph.groups[again._step].width)
            again.step(taken)
            assert again.kept() == walk.kept()
        for found, units in zip(reached, walk.kept(), strict=True):
            found.append(units)
    assert reached == [sorted(found) for found in reached]
    assert [set(found) for found in reached] == [set(space.choices(group)) for group in range(3)]
    walk.reset()
    for wrong in (13, -1, 0.5, [1, 2]):
        with pytest.raises(InputError, match="an action is a whole number from 0 to 12"):
            walk.step(np.array(wrong))


def test_accuracy_mode_has_no_hard_limit() -> None:
    graph = conv_chain()
    constraint = Constraint("macs", 1.0)  # no policy could keep it
    walk = ChannelPruningWalk(ChannelSpace.build(graph), constraint, mode="accuracy")
    while not walk.step(np.array([1.0]))[1]:
        pass
    assert graph.with_kept(walk.kept()).macs == graph.macs


def test_rewards_are_amcs() -> None:
    evaluation = Evaluation(0.8, {"macs": 1e6}, 0.0, 0.0)
    assert REWARDS["accuracy"](evaluation) == 0.8
    assert REWARDS["accuracy_flops"](evaluation) == pytest.approx(-0.2 * math.log(1e6))
    assert find_reward("accuracy_flops", "accuracy").counts_cost
    faster, slower = (Evaluation(0.8, {"latency_s": seconds}, 0.0, 0.0) for seconds in (1e-4, 2e-4))
    reward = find_reward("accuracy_latency", "accuracy")
    assert reward(faster) == pytest.approx(-0.2 * math.log(1e5))  # nanoseconds
    assert reward(slower) < reward(faster)
    failed = Evaluation(math.nan, {"macs": 1e6}, 0.0, 0.0)  # a reward that is no number would ruin an agent for good
    assert REWARDS["accuracy"](failed) == 0.0
    assert REWARDS["accuracy_flops"](failed) == pytest.approx(-math.log(1e6))


@pytest.mark.parametrize("faithful", [False, True])
def test_a_budget_below_the_cheapest_policy_names_that_minimum(faithful: bool) -> None:
    graph = mobilenet_v1()
    space = ChannelSpace.build(graph, 0.2, 8)
    cheapest = graph.with_kept(space.least).macs if not faithful else round(graph.real_macs([6.4, 12.8, *REAL]))
    with pytest.raises(InputError, match=f"needs {cheapest:,}") as refusal:
        ChannelPruningWalk(space, Constraint("macs", cheapest - 2), faithful=faithful)
    assert "\n" not in str(refusal.value)
    ChannelPruningWalk(space, Constraint("macs", cheapest + 2), faithful=faithful)


REAL = [0.2 * width for width in (128, 128, 256, 256, *[512] * 6, 1024, 1024)]


@pytest.mark.parametrize("action", [[np.nan], [0.1, 0.2], []])
def test_an_action_is_one_finite_number(action: list[float]) -> None:
    graph = conv_chain()
    walk = ChannelPruningWalk(ChannelSpace.build(graph), Constraint("macs", 0.5 * graph.macs))
    with pytest.raises(InputError, match="one finite number"):
        walk.step(np.array(action))


def test_misuse_is_refused() -> None:
    graph = conv_chain()
    constraint = Constraint("macs", 0.5 * graph.macs)
    space = ChannelSpace.build(graph)
    evaluator = AdditiveEvaluator(graph, constraint)
    with pytest.raises(InputError, match="built for another network"):
        ChannelPruningEnv(conv_chain((16, 32)), space, constraint, evaluator)
    walk = ChannelPruningWalk(space, constraint)
    while not walk.keep(0.5)[1]:
        pass
    with pytest.raises(InputError, match="reset it"):
        walk.keep(0.5)
    assert isinstance(walk.policy(), CompressionPolicy)


def test_faithful_rounding_leaves_no_group_empty() -> None:
    """Below one step of the grid the published code would keep no channel at all."""
    graph = conv_chain((4, 16))
    walk = ChannelPruningWalk(ChannelSpace.build(graph, 0.2, 8), Constraint("macs", 0.9 * graph.macs), faithful=True)
    while not walk.keep(0.5)[1]:
        pass
    assert walk.kept() == (4, 8)


def test_faithful_rounding_floors_to_the_grid_above_the_width() -> None:
    graph = conv_chain((20, 16))
    walk = ChannelPruningWalk(ChannelSpace.build(graph, 0.2, 8), Constraint("macs", graph.macs), faithful=True)
    walk.keep(0.95)  # 19 channels round up to 24, more than there are
    assert walk.kept()[0] == 16
    walk.reset()
    walk.keep(1.0)
    assert walk.kept()[0] == 20
