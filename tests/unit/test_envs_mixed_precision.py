"""The mixed-precision environment: HAQ's state and rounding by hand, the sweep's revision, both action spaces."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as check_gymnasium
from stable_baselines3.common.env_checker import check_env as check_sb3

import envs
from automl.searchers.agents import AgentSearcher, DDPGOptions, make_ddpg
from automl.testing.problems import GraphBuilder, cifar_resnet, conv_chain
from backends.bit_prices import counted_price
from envs.bit_budget import BitBudget, IntArray, one_by_one
from envs.layerwise import Revision
from envs.mixed_precision import MixedPrecisionWalk
from envs.observation import BIT_FEATURES, BitObservations
from envs.reward import accuracy_change
from search_spaces.building import SpaceOptions, build_space
from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph
from search_spaces.objective import Evaluation
from search_spaces.policy import CompressionPolicy, LayerPolicy


def four_layers() -> ModelGraph:
    """A strided, a depthwise and a pointwise convolution, and a classifier, of images of 32 x 32."""
    builder = GraphBuilder()
    builder.conv("stem", 16, stride=2)
    builder.conv("depthwise", 16, depthwise=True)
    builder.conv("pointwise", 32, kernel=1)
    builder.linear("classifier", 10)
    return builder.build()


def all_bits(bits: IntArray) -> IntArray:
    """A price that counts bits."""
    return np.asarray(bits.sum(axis=(1, 2)))


def judged(policy: CompressionPolicy) -> Evaluation:
    """The more bits, the more accurate; whole, 0.9."""
    bits = [layer.weight_bits or 8 for layer in policy.layers.values()]
    return Evaluation(0.9 - 0.01 * sum(8 - each for each in bits), {}, 0.0, 0.0)


def walk_of(graph: ModelGraph, limit: float = math.inf, **options: Any) -> MixedPrecisionWalk:
    return MixedPrecisionWalk(graph, all_bits, limit, **options)


def walked(walk: MixedPrecisionWalk, actions: Any) -> list[np.ndarray[Any, Any]]:
    observations = [walk.reset()]
    observations += [walk.step(np.asarray(action))[0] for action in actions]
    return observations


# State, by hand: the first eight features of each layer, in the paper's order, and what their spread is.
STATIC = np.array(
    [
        # k, in, out, kernel, stride, values of a channel read, weights, depthwise
        [0 / 3, 0 / 29, 6 / 22, 1, 2 / 2, 992 / 992, 288 / 368, 0],  # 3, 16, 3, 2, 32 * 32, 3 * 16 * 9
        [1 / 3, 13 / 29, 6 / 22, 1, 1 / 2, 224 / 992, 0 / 368, 1],  # 16, 16, 3, 1, 16 * 16, 16 * 9
        [2 / 3, 13 / 29, 22 / 22, 0, 1 / 2, 224 / 992, 368 / 368, 0],  # 16, 32, 1, 1, 16 * 16, 16 * 32
        [3 / 3, 29 / 29, 0 / 22, 0, 0 / 2, 0 / 992, 176 / 368, 0],  # 32, 10, 1, 0, 32, 32 * 10
    ]
)


def test_the_state_is_haqs() -> None:
    """Weights of layer 1, its activations, weights of layer 2, its activations; then the last once more."""
    walk = walk_of(four_layers())
    assert len(BIT_FEATURES) == 10
    assert walk.order == [(1, 0), (1, 1), (2, 0), (2, 1)]
    # of 2 to 8 bits, each has a seventh of the actions
    observations = walked(walk, [[-1.0], [0.0], [1.0], [-0.6]])
    expected = [
        [*STATIC[1], 1, 1.0],
        [*STATIC[1], 0, 2 / 8],
        [*STATIC[2], 1, 5 / 8],
        [*STATIC[2], 0, 8 / 8],
        [*STATIC[2], 0, 8 / 8],
    ]
    assert np.stack(observations) == pytest.approx(np.array(expected), abs=1e-6)
    assert walk.bits().tolist() == [[8, 8], [2, 5], [8, 3], [8, 8]]


def test_faithful_the_state_is_that_of_haqs_code() -> None:
    """The ends are decided on as well; whether weights come next is told the other way round, but at first."""
    walk = walk_of(four_layers(), faithful=True)
    observations = walked(walk, [[0.0]] * 8)
    layers = [0, 0, 1, 1, 2, 2, 3, 3, 3]
    flags = [1, 1, 0, 1, 0, 1, 0, 1, 1]
    last = [1.0] + [5 / 8] * 8
    expected = [[*STATIC[layer], flag, bits] for layer, flag, bits in zip(layers, flags, last, strict=True)]
    assert np.stack(observations) == pytest.approx(np.array(expected), abs=1e-6)


def test_the_number_of_the_step_follows_where_it_is_asked_for() -> None:
    plain, coded = (walk_of(four_layers(), step_code=code) for code in (False, True))
    actions = [[0.5]] * 4
    expected = np.hstack([np.stack(walked(plain, actions)), np.eye(4)[[0, 1, 2, 3, 3]]])
    assert np.stack(walked(coded, actions)).tolist() == expected.tolist()


def test_a_feature_that_all_layers_share_is_0_or_faithful_as_it_is() -> None:
    builder = GraphBuilder(channels=1)
    builder.conv("first", 8)
    builder.conv("second", 8)
    layers = builder.build().layers
    kernel, stride, depthwise = 3, 4, 7
    ours, theirs = BitObservations(layers), BitObservations(layers, faithful=True)
    seen = ours.observe(0, 0, True, 1.0)
    assert seen[[kernel, stride, depthwise]].tolist() == [0.0, 0.0, 0.0]
    seen = theirs.observe(0, 0, True, 1.0)
    # a layer that reads one channel in one group is taken for a depthwise one
    assert seen[[kernel, stride, depthwise]].tolist() == [3.0, 1.0, 1.0]
    assert (ours.highest, theirs.highest) == (1.0, 32.0 * 32.0)
    walk = walk_of(builder.build(), faithful=True)
    assert walk.observation_space.contains(walk.reset())


@pytest.mark.parametrize(
    ("least", "most", "share", "bits"),
    [
        (2, 8, 0.0, 2),
        (2, 8, 0.1, 2),  # 7 * 0.1 + 1.5 = 2.2
        (2, 8, 0.15, 3),  # 2.55
        (2, 8, 0.5, 5),
        (2, 8, 0.9, 8),  # 7.8
        (2, 8, 1.0, 8),  # 8.5, to the even one
        (1, 8, 0.0, 1),  # 0.5, to 0, which is no choice
        (1, 8, 0.125, 2),  # 1.5
        (1, 8, 0.25, 2),  # 2.5
        (1, 8, 0.375, 4),  # 3.5
        (1, 8, 1.0, 8),
        (3, 5, 1.0, 5),  # 5.5, to 6, which is no choice
        (4, 7, 0.5, 6),  # 5.5
    ],
)
def test_an_action_is_rounded_as_haqs(least: int, most: int, share: float, bits: int) -> None:
    """round(share * (most - least + 1) + least - 0.5), within the choices."""
    walk = walk_of(four_layers(), weight_bits=range(least, most + 1))
    walked(walk, [[2.0 * share - 1.0]])
    assert walk.bits()[1].tolist() == [bits, 8]


def test_taken_is_the_middle_of_the_actions_that_come_to_the_same() -> None:
    walk = walk_of(four_layers(), weight_bits=(2, 4, 8, 16), activation_bits=(8,))
    assert walk.order == [(1, 0), (2, 0)]
    walked(walk, [[0.3]])
    assert walk.bits()[1].tolist() == [8, 8]
    assert walk.taken().tolist() == [0.25]
    assert [float(walk.action(bits, 0)[0]) for bits in (2, 4, 8, 16)] == [-0.75, -0.25, 0.25, 0.75]
    faithful = walk_of(four_layers(), weight_bits=(2, 4, 8, 16), faithful=True)
    walked(faithful, [[0.3]])
    assert faithful.taken().tolist() == [0.3]


def test_bits_are_lowered_from_the_last_layer_activations_first() -> None:
    """All but the ends, one bit at a time: 46 of 64 bits are 18 off, and a sweep of four takes 4."""
    walk = walk_of(four_layers(), limit=46)
    walked(walk, [[1.0]] * 4)
    assert walk.bits().tolist() == [[8, 8], [4, 4], [3, 3], [8, 8]]
    walk = walk_of(four_layers(), limit=45)
    walked(walk, [[1.0]] * 4)
    assert walk.bits().tolist() == [[8, 8], [4, 3], [3, 3], [8, 8]]
    layers = walk.policy().layers
    assert layers["depthwise"] == LayerPolicy(weight_bits=4, activation_bits=3)
    assert layers["stem"] == layers["classifier"] == LayerPolicy(weight_bits=8, activation_bits=8)


def test_faithful_bits_that_keep_the_budget_as_proposed_stay_at_the_ends_too() -> None:
    walk = walk_of(four_layers(), limit=48, faithful=True)
    walked(walk, [[0.3]] * 8)
    assert walk.bits().tolist() == [[6, 6]] * 4
    assert walk.policy().layers["stem"] == LayerPolicy(weight_bits=6, activation_bits=6)
    walked(walk, [[0.3]] * 7 + [[1.0]])
    assert walk.bits().tolist() == [[8, -1], [5, 4], [4, 4], [8, 8]]
    assert walk.budget.cost(walk.bits()) == 8 + 7 + 5 + 4 + 4 + 4 + 8 + 8  # the input at 7 bits
    assert walk.policy().layers["stem"] == LayerPolicy(weight_bits=8)


@pytest.mark.parametrize("discrete", [False, True])
def test_the_revision_is_the_episode_that_would_have_proposed_the_outcome(discrete: bool) -> None:
    graph = cifar_resnet(8)
    price = counted_price(graph)
    limit = 0.12 * 4 * graph.params
    walk = MixedPrecisionWalk(graph, price, limit, discrete=discrete)
    walk.action_space.seed(3)
    walked(walk, [walk.action_space.sample() for _ in range(walk.steps)])
    bits, policy, revised = walk.bits(), walk.policy(), walk.revised()
    assert isinstance(revised, Revision)
    assert walk.budget.cost(bits) <= limit
    observations = walked(walk, revised.actions)
    assert np.stack(observations).tolist() == revised.observations.tolist()
    assert walk.bits().tolist() == bits.tolist()
    assert walk.policy() == policy


@pytest.mark.parametrize("activation_bits", [(2, 4, 8), (8,), ()], ids=["decided", "given", "float32"])
@pytest.mark.parametrize("ends", [False, True])
def test_what_is_found_is_a_policy_of_the_search_space(activation_bits: tuple[int, ...], ends: bool) -> None:
    graph = cifar_resnet(8)
    options: dict[str, Any] = {"weight_bits": (2, 4, 8), "activation_bits": activation_bits, "ends": ends}
    space = build_space(graph, SpaceOptions(channels=False, **options))
    walk = walk_of(graph, **options)
    assert walk.steps == len(space.decisions)
    walk.action_space.seed(0)
    walked(walk, [walk.action_space.sample() for _ in range(walk.steps)])
    assert space.contains(walk.policy())
    assert len({layer.weight_bits for layer in walk.policy().layers.values()}) > 1


def test_weights_alone_ends_included() -> None:
    walk = walk_of(four_layers(), weight_bits=(8, 1, None, 1), activation_bits=(), ends=True)
    assert walk.order == [(0, 0), (1, 0), (2, 0), (3, 0)]
    walked(walk, [[-1.0], [0.0], [1.0], [1.0]])
    assert walk.bits().tolist() == [[1, 32], [8, 32], [32, 32], [32, 32]]
    layers = walk.policy().layers
    assert layers["stem"] == LayerPolicy(weight_bits=1)
    assert not layers["classifier"].treats


def test_layers_that_are_not_asked_for_stay_float32() -> None:
    walk = walk_of(four_layers(), layers={"pointwise", "classifier"})
    assert walk.order == [(2, 0), (2, 1)]
    walked(walk, [[0.0], [-1.0]])
    assert walk.bits().tolist() == [[8, 8], [32, 32], [5, 2], [8, 8]]
    assert not walk.policy().layers["depthwise"].treats


def test_a_discrete_action_is_the_number_of_a_choice() -> None:
    walk = walk_of(four_layers(), weight_bits=(2, 4, 8), activation_bits=(4, 8), discrete=True)
    assert walk.action_space == spaces.Discrete(3)
    walked(walk, [0, 1, 2, 2])  # there is no third choice of activations: the most
    assert walk.bits().tolist() == [[8, 8], [2, 8], [8, 8], [8, 8]]
    revised = walk.revised()
    assert revised is not None
    assert revised.actions.tolist() == [0, 1, 2, 1]
    walk.reset()
    for wrong in (3, -1, 0.5, [0, 1]):
        with pytest.raises(InputError, match="an action is a whole number"):
            walk.step(np.array(wrong))


@pytest.mark.parametrize(
    "options",
    [{}, {"faithful": True}, {"discrete": True}, {"ends": True, "activation_bits": ()}],
    ids=["default", "faithful", "discrete", "weights"],
)
@pytest.mark.parametrize("graph", [four_layers(), conv_chain()], ids=["four", "chain"])
def test_both_checkers_pass_without_a_warning(graph: ModelGraph, options: Mapping[str, Any]) -> None:
    assert envs.__name__ == "envs"  # importing the package registered the environment
    limit = 200.0 if "activation_bits" in options else 50.0
    env = gymnasium.make(
        "trimtab/MixedPrecision-v0", graph=graph, price=all_bits, limit=limit, evaluator=judged, **options
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_gymnasium(env.unwrapped)
        check_sb3(env)


def test_an_episode_is_rewarded_by_what_it_changed() -> None:
    """A tenth of the percentage points: 0.9 whole, and the last step says what was revised."""
    env = gymnasium.make("trimtab/MixedPrecision-v0", graph=four_layers(), price=all_bits, limit=50.0, evaluator=judged)
    env.reset(seed=0)
    for step in range(4):
        _, reward, ended, _, info = env.step(np.array([1.0], dtype=np.float32))
        assert ended == (step == 3)
        assert ended or (reward == 0.0 and info.keys() == {"taken"})
    weights = [layer.weight_bits for layer in info["policy"].layers.values()]
    assert weights == [8, 5, 4, 8]
    assert reward == pytest.approx(0.1 * 100 * (judged(info["policy"]).accuracy - 0.9))
    assert info["revised"].actions.shape == (4, 1)
    assert accuracy_change(0.7)(Evaluation(0.69, {}, 0.0, 0.0)) == pytest.approx(-0.1)
    asked: list[CompressionPolicy] = []
    gymnasium.make(
        "trimtab/MixedPrecision-v0", graph=four_layers(), price=all_bits, limit=50.0, evaluator=asked.append, whole=0.9
    )
    assert not asked  # the whole network's accuracy was given


def test_the_agent_learns_from_actions_that_were_taken() -> None:
    """The replay buffer holds the revision, by ask and tell as by the library's own loop; published, the proposals."""
    graph = four_layers()

    def stored(taken: bool) -> tuple[list[Any], list[Any], MixedPrecisionWalk]:
        walk = walk_of(graph, limit=46)
        searcher = AgentSearcher(walk, accuracy_change(0.9), 0, DDPGOptions(warmup=5, taken=taken))
        policy = searcher.ask()
        searcher.tell(policy, judged(policy))
        replay = searcher._agent.replay
        return replay.actions[:4, 0].tolist(), replay.observations[:4, 0].tolist(), walk

    actions, observations, walk = stored(taken=True)
    revised = walk.revised()
    assert revised is not None
    assert actions == revised.actions.tolist()
    assert observations == revised.observations[:-1].tolist()
    proposed, seen, _ = stored(taken=False)
    assert proposed != actions
    assert seen != observations

    evaluated: list[CompressionPolicy] = []

    def kept(policy: CompressionPolicy) -> Evaluation:
        evaluated.append(policy)
        return judged(policy)

    env = gymnasium.make(
        "trimtab/MixedPrecision-v0", graph=graph, price=all_bits, limit=46.0, evaluator=kept, whole=0.9
    )
    agent = make_ddpg(env, 4, taken=True, warmup=5)
    agent.learn(4)
    assert agent.replay_buffer is not None
    assert len(evaluated) == 1
    again = walk_of(graph, limit=46)
    observations = walked(again, agent.replay_buffer.actions[:4, 0])
    assert again.policy() == evaluated[0]
    assert np.stack(observations)[1:].tolist() == agent.replay_buffer.next_observations[:4, 0].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"limit": 39},
            r"the budget of 39 cannot be kept: the lowest bits cost 40 \(62.50% of the 64 of",
        ),
        ({"limit": math.nan}, "cannot be kept"),
        ({"weight_bits": (0, 8)}, "weight_bits are whole numbers from 1 to 16, or None for float32, got 0"),
        ({"activation_bits": (4.0,)}, "activation_bits are whole numbers"),
        ({"weight_bits": (8,), "activation_bits": ()}, "there is nothing to decide"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        walk_of(four_layers(), **options)


def test_a_finished_walk_takes_no_step() -> None:
    walk = walk_of(four_layers())
    walked(walk, [[0.0]] * 4)
    with pytest.raises(InputError, match="the walk has ended"):
        walk.step(np.zeros(1))


def test_prices_that_do_not_fit_are_refused() -> None:
    fixed = np.zeros((3, 2))
    choices = (range(2, 9), range(2, 9))
    with pytest.raises(InputError, match=r"of \[1, 3, 2\] it gave \[1, 3\]; see one_by_one"):
        BitBudget(lambda bits: bits.sum(axis=-1), 30, choices, fixed)
    budget = BitBudget(one_by_one(lambda bits: float(bits.sum())), 30, choices, fixed)
    assert budget.meet(budget.highest).sum() == 30
    with pytest.raises(InputError, match="bits are one of 2, 3, 4, 5, 6, 7, 8, got 9"):
        budget.meet(np.full((3, 2), 9))
    told = iter([30.0])  # the lowest bits keep the limit when first asked for, and never again
    moody = BitBudget(lambda bits: np.full(len(bits), next(told, 31.0)), 30, choices, fixed)
    with pytest.raises(InputError, match="it must not rise as bits fall"):
        moody.meet(moody.highest)
