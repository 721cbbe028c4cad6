"""Every agent over every kind of space, and what each of them adds to the library's algorithm."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from automl.searchers import Searcher, make_searcher
from automl.searchers.agent_options import AGENTS, DDPGOptions, PPOOptions, SACOptions, TD3Options, agent_options
from automl.searchers.agents import AgentSearcher
from automl.searchers.agents.ppo import SearchPPO
from automl.searchers.agents.sac import SearchSAC
from automl.searchers.agents.td3 import SearchTD3
from automl.searchers.points.base import PointProblem
from automl.searchers.walks import walk_over
from automl.testing.points import AdditiveAccuracy, PointSearcherConformance, small_space
from automl.testing.problems import AdditiveEvaluator, cifar_resnet, conv_chain
from automl.testing.searchers import SearcherConformance
from backends.point_prices import PointPrices
from envs.channel_pruning import ChannelPruningEnv, ChannelPruningWalk
from envs.joint import JointWalk
from envs.mixed_precision import MixedPrecisionWalk
from envs.reward import find_reward
from search_spaces.building import SpaceOptions, build_space
from search_spaces.channel_space import ChannelSpace
from search_spaces.errors import InputError
from search_spaces.objective import Constraint, Evaluation
from search_spaces.space import SearchSpace

SMALL: Mapping[str, Mapping[str, Any]] = {
    "ddpg": {"warmup": 3, "updates": 1, "hidden": 16, "batch": 8},
    "td3": {"warmup": 3, "updates": 1, "hidden": 16, "batch": 8},
    "sac": {"warmup": 3, "updates": 1, "hidden": 16, "batch": 8},
    "ppo": {"episodes": 3, "hidden": 16, "epochs": 2},
}


class ChannelKit(SearcherConformance):
    """Over channels, by AMC's walk."""

    name: str
    evaluations = 6
    lags = (2,)

    def make(self, space: ChannelSpace, constraint: Constraint, seed: int) -> Searcher:
        return make_searcher(
            self.name,
            space=space,
            constraint=constraint,
            seed=seed,
            evaluations=self.evaluations,
            options=SMALL[self.name],
        )


@pytest.mark.slow
class TestTD3(ChannelKit):
    name = "td3"


class TestSAC(ChannelKit):
    name = "sac"


class TestPPO(ChannelKit):
    name = "ppo"


class JointKit(PointSearcherConformance):
    """Over channels and bits under two budgets, by the joint walk, whose actions are vectors."""

    name: str
    evaluations = 12
    lags = (2,)

    def make(self, problem: PointProblem) -> Searcher:
        return make_searcher(
            self.name,
            space=problem.space,
            constraint=problem.constraints,
            seed=problem.seed,
            evaluations=problem.evaluations,
            prices=problem.prices,
            options=SMALL[self.name],
        )


@pytest.mark.slow
class TestJointDDPG(JointKit):
    name = "ddpg"


class TestJointTD3(JointKit):
    name = "td3"


@pytest.mark.slow
class TestJointSAC(JointKit):
    name = "sac"


class TestJointPPO(JointKit):
    name = "ppo"


# --- Which walk


@cache
def bits(**options: Any) -> tuple[SearchSpace, PointPrices]:
    found = {"channels": False, "weight_bits": (2, 4, 8), **options}
    space = build_space(cifar_resnet(8), SpaceOptions(**found))
    return space, PointPrices(space)


def walk_of(space: SearchSpace, *constraints: Constraint, faithful: bool = False) -> Any:
    return walk_over(space, constraints, PointPrices(space), faithful=faithful, step_code=True)


def bytes_of(space: SearchSpace, ratio: float = 0.15) -> Constraint:
    return Constraint("weight_bytes", ratio * space.graph.weight_bytes)


@pytest.mark.parametrize("options", [{}, {"activation_bits": (4, 8)}, {"ends": True}], ids=["w", "w+a", "ends"])
def test_as_published_bits_layer_by_layer_are_walked_as_haq_does(options: Mapping[str, Any]) -> None:
    space, _ = bits(**options)
    walk = walk_of(space, bytes_of(space), faithful=True)
    assert isinstance(walk, MixedPrecisionWalk)
    assert walk.steps == len(space.decisions)
    assert isinstance(walk_of(space, bytes_of(space)), JointWalk)


def test_nothing_was_published_for_anything_else() -> None:
    alone, _ = bits()
    both, _ = small_space()
    tied, _ = bits(tie=(("stage0.0.conv1", "stage0.0.conv2"),))
    coupled, _ = bits(weight_bits=(4, 8), activation_bits=(4, 8), coupled_bits=True)
    ranks = build_space(cifar_resnet(8), SpaceOptions(channels=False, rank=(0.25, 0.5)))
    macs = Constraint("macs", alone.graph.macs)
    for space, constraints in (
        (both, [bytes_of(both)]),
        (tied, [bytes_of(tied)]),
        (coupled, [bytes_of(coupled, 0.3)]),
        (ranks, [bytes_of(ranks, 0.7)]),
        (alone, [bytes_of(alone), macs]),
    ):
        assert isinstance(walk_of(space, *constraints), JointWalk)
        with pytest.raises(InputError, match="AMC's agent of channels, or HAQ's of weight_bits"):
            walk_of(space, *constraints, faithful=True)


def test_the_published_agent_of_bits_is_haqs() -> None:
    space, prices = bits(activation_bits=(4, 8))
    searcher = make_searcher(
        "ddpg", space=space, constraint=bytes_of(space), seed=0, evaluations=9, prices=prices, faithful=True
    )
    assert isinstance(searcher, AgentSearcher)
    assert searcher._options == DDPGOptions(warmup=20, decay=0.99, replay=64)
    assert searcher._agent.observation_space.shape == (10,)  # the paper's features, no number of the step
    rewards = [searcher.tell(searcher.ask(), Evaluation(accuracy, {}, 0.0, 0.0)) for accuracy in (0.9, 0.8)]
    assert rewards[0] - rewards[1] == pytest.approx(1.0)  # a tenth of ten percentage points


def test_what_was_not_published_is_refused_in_one_line() -> None:
    space, prices = bits()
    both, _ = small_space()
    modelled = Constraint("modelled_latency_s", 1.0)
    for name, kind, constraints, said in (
        ("td3", space, (bytes_of(space),), "'td3' has none"),
        ("ddpg", both, (bytes_of(both),), "decided for each layer alone"),
        ("ddpg", space, (bytes_of(space), Constraint("macs", space.graph.macs)), "under one budget"),
    ):
        with pytest.raises(InputError, match=said) as refusal:
            make_searcher(name, space=kind, constraint=constraints, seed=0, evaluations=9, faithful=True)
        assert "\n" not in str(refusal.value)
    with pytest.raises(InputError, match="mode 'accuracy' is the agents' alone"):
        make_searcher("sac", space=space, constraint=modelled, seed=0, evaluations=9, mode="accuracy", prices=prices)


# --- What the agents do


STEPS = 3
GRAPH = conv_chain((16, 32, 32))
BUDGET = Constraint("macs", 0.5 * GRAPH.macs)


def environment() -> ChannelPruningEnv:
    return ChannelPruningEnv(GRAPH, ChannelSpace.build(GRAPH), BUDGET, AdditiveEvaluator(GRAPH, BUDGET))


def searcher_of(name: str, **options: Any) -> AgentSearcher:
    found = make_searcher(
        name,
        space=ChannelSpace.build(GRAPH),
        constraint=BUDGET,
        seed=0,
        evaluations=40,
        options={**SMALL[name], **options},
    )
    assert isinstance(found, AgentSearcher)
    return found


def told(searcher: AgentSearcher, *accuracies: float) -> list[Any]:
    """Their episodes."""
    policies = [searcher.ask() for _ in accuracies]
    episodes = list(searcher._pending)
    for policy, accuracy in zip(policies, accuracies, strict=True):
        searcher.tell(policy, Evaluation(accuracy, {}, 0.0, 0.0))
    return episodes


def test_critics_that_do_not_bootstrap_learn_the_episodes_reward() -> None:
    """Many updates on one episode: the value of each of its steps becomes its rank, 0."""
    for kind, options in ((SearchTD3, TD3Options), (SearchSAC, SACOptions)):
        agent = kind(environment(), STEPS, options(hidden=16, batch=8, warmup=0, updates=50, critic_lr=0.01), 0)
        walk = ChannelPruningWalk(ChannelSpace.build(GRAPH), BUDGET)
        searcher = AgentSearcher(walk, find_reward("accuracy"), 0, agent.options)
        searcher.ask()
        episode = searcher._pending[0]
        agent.learn_from(episode, 0.7, 0)
        with torch.no_grad():
            values = agent.critic(torch.tensor(episode.observations[:-1]), torch.tensor(episode.taken))
        for each in values:
            assert each.numpy() == pytest.approx(np.zeros((STEPS, 1)), abs=0.05)


def test_ppo_learns_from_full_batches_with_what_was_noted_when_asked() -> None:
    searcher = searcher_of("ppo", episodes=3)
    agent = searcher._agent
    assert isinstance(agent, SearchPPO)
    before = [parameter.detach().clone() for parameter in agent.policy.parameters()]
    first = told(searcher, 0.5, 0.9)
    assert all(torch.equal(*pair) for pair in zip(before, agent.policy.parameters(), strict=True))
    with torch.no_grad():
        seen, did = torch.tensor(first[0].observations[:-1]), torch.tensor(first[0].actions)
        values, log_probabilities, _ = agent.policy.evaluate_actions(seen, did)
    assert first[0].notes[:, 0] == pytest.approx(values[:, 0].numpy(), abs=1e-6)
    assert first[0].notes[:, 1] == pytest.approx(log_probabilities.numpy(), abs=1e-5)

    (third,) = told(searcher, 0.7)
    assert not all(torch.equal(*pair) for pair in zip(before, agent.policy.parameters(), strict=True))
    buffer = agent.rollout_buffer  # flat by now, one episode after the other
    ranks = np.sqrt(3) * np.array([-2 / 3, 2 / 3, 0.0])
    notes = np.stack([episode.notes for episode in (*first, third)])
    assert buffer.returns.reshape(3, STEPS) == pytest.approx(np.repeat(ranks[:, None], STEPS, 1), abs=1e-5)
    assert buffer.advantages.reshape(3, STEPS) == pytest.approx(ranks[:, None] - notes[:, :, 0], abs=1e-5)


def test_sac_draws_from_its_actor() -> None:
    agent = searcher_of("sac")._agent
    assert isinstance(agent, SearchSAC)
    state = np.random.default_rng(0).random((1, agent.observation_space.shape[0]), dtype=np.float32)
    drawn = np.arctanh(agent.explore(np.repeat(state, 4000, 0), episode=100).astype(np.float64))
    with torch.no_grad():
        mean, log_std, _ = agent.actor.get_action_dist_params(torch.tensor(state))
    assert drawn.mean() == pytest.approx(mean.item(), abs=0.06)
    assert drawn.std() == pytest.approx(np.exp(log_std.item()), rel=0.05)


def test_schedules_stretch_to_the_length_of_a_search() -> None:
    for name, kind in AGENTS.items():
        long, short = (agent_options(name, {}, evaluations) for evaluations in (400, 40))
        assert type(long) is type(short) is kind
        if isinstance(long, PPOOptions) and isinstance(short, PPOOptions):
            assert (long.episodes, short.episodes) == (8, 3)
        else:
            assert (getattr(long, "warmup"), getattr(short, "warmup")) == (40, 4)  # noqa: B009


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("td3", {"delay": 0}, "td3: delay is at least 1, got 0"),
        ("sac", {"entropy": -1.0}, "sac: entropy is not negative"),
        ("ppo", {"clip": 0}, r"ppo: clip lies in \(0, 1\]"),
        ("ppo", {"warmup": 3}, "'ppo' has no option 'warmup'"),
        ("sac", {"sigma": 0.1}, "'sac' has no option 'sigma'"),
        ("td3", {"lr": 0.1}, "'td3' has no option 'lr'"),
        ("ddpg", {"sigma": float("nan")}, "ddpg: sigma is not negative"),
    ],
)
def test_options_are_checked(name: str, options: Mapping[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        searcher_of(name, **options) if name != "ppo" or "warmup" not in options else agent_options(name, options, 9)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SMALL))
def test_agents_learn_which_bits_matter(name: str) -> None:
    """On additive losses: the last fifth of the proposals is better on average than the first, which is random."""
    space = build_space(cifar_resnet(20), SpaceOptions(channels=False, weight_bits=(2, 3, 4, 6, 8)))
    accuracy = AdditiveAccuracy(space)
    searcher = make_searcher(name, space=space, constraint=bytes_of(space, 0.12), seed=0, evaluations=150)
    found = []
    for _ in range(150):
        policy = searcher.ask()
        found.append(accuracy(space.encode(policy)))
        searcher.tell(policy, Evaluation(found[-1], {}, 0.0, 0.0))
    assert np.mean(found[-30:]) > np.mean(found[:30])
