"""AMC's agent: noise, replay, weights and updates against what the paper and its code say, written a second time."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from automl.searchers import make_searcher
from automl.searchers.agents import AgentSearcher, AmcDDPG, DDPGOptions, EpisodeReplay, make_ddpg, truncated_normal
from automl.testing.problems import AdditiveEvaluator, conv_chain
from envs.channel_pruning import ChannelPruningEnv, ChannelPruningWalk
from envs.reward import find_reward
from search_spaces.channel_space import ChannelSpace
from search_spaces.errors import TrimtabError
from search_spaces.objective import Constraint, Evaluation

GRAPH = conv_chain((16, 32, 32, 64))
CONSTRAINT = Constraint("macs", 0.5 * GRAPH.macs)
SPACE = ChannelSpace.build(GRAPH)
STEPS = 4


def environment() -> ChannelPruningEnv:
    return ChannelPruningEnv(GRAPH, SPACE, CONSTRAINT, AdditiveEvaluator(GRAPH, CONSTRAINT))


def agent(seed: int = 0, **options: Any) -> AmcDDPG:
    return make_ddpg(environment(), STEPS, seed, **options)


def replay_of(trained: AmcDDPG) -> EpisodeReplay:
    assert isinstance(trained.replay_buffer, EpisodeReplay)
    return trained.replay_buffer


def fill(replay: EpisodeReplay, rewards: list[float], generator: np.random.Generator) -> None:
    for reward in rewards:
        for step in range(STEPS):
            state = generator.random((2, 1, 11), dtype=np.float32)
            action = generator.uniform(-1, 1, (1, 1))
            last = step == STEPS - 1
            info = {"taken": np.array([0.25], dtype=np.float32)}
            replay.add(*state, action, np.array([reward if last else 0.0]), np.array([last]), [info])


@pytest.mark.parametrize(("mean", "sigma"), [(0.0, 1.0), (0.9, 0.2), (-1.0, 0.05), (0.3, 3.0)])
def test_noise_is_a_truncated_normal(mean: float, sigma: float) -> None:
    drawn = truncated_normal(np.full(4000, mean), sigma, np.random.default_rng(0))
    assert np.abs(drawn).max() <= 1.0
    expected = stats.truncnorm((-1 - mean) / sigma, (1 - mean) / sigma, loc=mean, scale=sigma)
    assert stats.kstest(drawn, expected.cdf).pvalue > 0.01


def test_noise_that_has_decayed_away_leaves_the_actors_output() -> None:
    mean = np.array([-1.0, 0.25, 1.0])
    assert truncated_normal(mean, 1e-12, np.random.default_rng(0)) == pytest.approx(mean)
    assert (truncated_normal(mean, 0.0, np.random.default_rng(0)) == mean).all()


def test_an_episode_is_held_back_and_every_step_gets_its_final_reward() -> None:
    replay = replay_of(agent())
    generator = np.random.default_rng(0)
    fill(replay, [0.3], generator)
    replay.add(*generator.random((2, 1, 11)), np.zeros((1, 1)), np.zeros(1), np.array([False]), [{}])
    assert replay.size() == STEPS
    assert replay.rewards[:STEPS, 0] == pytest.approx([0.3] * STEPS)
    assert replay.dones[:STEPS, 0].tolist() == [0.0] * (STEPS - 1) + [1.0]


def test_the_buffer_keeps_a_hundred_episodes() -> None:
    replay = replay_of(agent())
    fill(replay, [0.1] * 30 + [0.5] * 100, np.random.default_rng(0))
    assert replay.size() == 100 * STEPS
    assert (replay.rewards == np.float32(0.5)).all()


def test_the_baseline_follows_the_batches_before_it_is_subtracted() -> None:
    replay = replay_of(agent())
    fill(replay, np.linspace(0.2, 0.9, 40).tolist(), np.random.default_rng(0))
    baseline = None
    for _ in range(5):
        batch = replay.sample(64)
        raw = batch.rewards.numpy() + np.float32(replay.baseline)
        baseline = raw.mean() if baseline is None else baseline + 0.5 * (raw.mean() - baseline)
        assert replay.baseline == pytest.approx(baseline, rel=1e-5)
        assert len(np.unique(batch.observations.numpy(), axis=0)) == 64  # without replacement


def test_warmup_is_uniform_then_the_actor_leads() -> None:
    acting = agent(warmup=3)
    state = np.random.default_rng(1).random((2000, 11), dtype=np.float32)
    assert stats.kstest(acting.explore(state, 2)[:, 0], stats.uniform(-1, 2).cdf).pvalue > 0.01
    with torch.no_grad():
        mean = acting.actor(torch.tensor(state)).numpy()
    late = acting.explore(state, 3 + 200)
    assert np.abs(late - mean).max() < 1e-3
    first = acting.explore(state, 3)
    assert 0.3 < np.abs(first - mean).mean() < 0.9


class PublishedActor(nn.Module):
    """AMC's actor: ends in a sigmoid, ratios in [0, 1]."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.layers[1](torch.relu(self.layers[0](state))))
        return torch.sigmoid(self.layers[2](hidden))


def linears(network: nn.Module) -> list[nn.Linear]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear)]


def test_weights_start_as_in_the_published_networks() -> None:
    """Uniform within 1/sqrt(inputs); seen from AMC's [0, 1] the action enters by a layer of one input."""
    made = agent()
    first, second, last = linears(made.actor.mu)
    for layer, bound in ((first, 11**-0.5), (second, 300**-0.5), (last, 0.5 * 300**-0.5)):
        assert layer.weight.abs().max().item() == pytest.approx(bound, rel=0.05)
    critic_first = linears(made.critic)[0]
    state, action = critic_first.weight[:, :11], critic_first.weight[:, 11:]
    assert state.abs().max().item() == pytest.approx(11**-0.5, rel=0.05)
    assert action.abs().max().item() == pytest.approx(0.5, rel=0.05)  # 1 on a ratio in [0, 1]
    bias = (critic_first.bias - action.sum(1)).detach().numpy()  # the two published layers have a bias each
    assert np.abs(bias).max() <= 11**-0.5 + 1.0
    assert np.std(bias) == pytest.approx(np.sqrt((1 / 11 + 1) / 3), rel=0.1)
    for online, target in ((made.actor, made.actor_target), (made.critic, made.critic_target)):
        for ours, theirs in zip(online.parameters(), target.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_the_actor_is_amcs_sigmoid_stretched() -> None:
    made = agent()
    layers = linears(made.actor.mu)
    published = [nn.Linear(layer.in_features, layer.out_features) for layer in layers]
    with torch.no_grad():
        for ours, theirs in zip(layers, published, strict=True):
            theirs.weight.copy_(ours.weight)
            theirs.bias.copy_(ours.bias)
        published[-1].weight *= 2
        published[-1].bias *= 2
        state = torch.rand(8, 11)
        assert torch.allclose(made.actor(state), 2 * PublishedActor(published)(state) - 1, atol=1e-6)


def test_updates_are_algorithm_1_of_ddpg() -> None:
    """Critic, actor and targets after several updates, against the textbook's loop with torch's own Adam."""
    trained = agent(hidden=20, batch=16)
    fill(replay_of(trained), np.linspace(0.1, 0.9, 12).tolist(), np.random.default_rng(3))
    plain = copy.deepcopy(trained)
    trained.train(5, 16)

    actor, critic = plain.actor.mu, plain.critic.q_networks[0]
    actor_target, critic_target = plain.actor_target.mu, plain.critic_target.q_networks[0]
    actor_adam = torch.optim.Adam(actor.parameters(), 1e-4)
    critic_adam = torch.optim.Adam(critic.parameters(), 1e-3)

    def value(network: nn.Module, state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = network(torch.cat((state, action), 1))
        return result

    for _ in range(5):
        batch = replay_of(plain).sample(16)
        with torch.no_grad():
            future = value(critic_target, batch.next_observations, actor_target(batch.next_observations))
            wanted = batch.rewards + (1 - batch.dones) * future
        critic_adam.zero_grad()
        loss = ((value(critic, batch.observations, batch.actions) - wanted) ** 2).mean()
        torch.autograd.backward(loss)
        critic_adam.step()
        actor_adam.zero_grad()
        torch.autograd.backward(-value(critic, batch.observations, actor(batch.observations)).mean())
        actor_adam.step()
        for online, target in ((actor, actor_target), (critic, critic_target)):
            for ours, theirs in zip(online.parameters(), target.parameters(), strict=True):
                theirs.data = 0.99 * theirs.data + 0.01 * ours.data

    for name in ("actor", "critic", "actor_target", "critic_target"):
        for ours, theirs in zip(getattr(trained, name).parameters(), getattr(plain, name).parameters(), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_ranks_share_a_place_among_equals() -> None:
    replay = replay_of(agent(ranks=True))
    fill(replay, [0.1, 0.1, 0.5, 0.9], np.random.default_rng(0))
    ranks = replay.sample(4 * STEPS).rewards.numpy()
    expected = np.sqrt(3) * np.array([-0.5, -0.5, 0.25, 0.75])
    assert sorted(ranks[:, 0].tolist()) == pytest.approx(np.repeat(expected, STEPS).tolist())


def test_stored_actions_are_the_proposed_or_the_taken_ones() -> None:
    for taken in (False, True):
        replay = replay_of(agent(taken=taken))
        fill(replay, [0.5], np.random.default_rng(0))
        assert ((replay.actions[:STEPS] == 0.25).all()) == taken


def test_the_library_s_own_loop_learns_and_repeats() -> None:
    def learned(seed: int) -> tuple[AmcDDPG, list[torch.Tensor]]:
        trained = agent(seed, warmup=3, hidden=16, batch=8)
        trained.learn(total_timesteps=6 * STEPS)
        return trained, [parameter.detach() for parameter in trained.actor.parameters()]

    trained, first = learned(1)
    assert trained._n_updates == 3 * STEPS  # episodes 3, 4 and 5, an update for each of their steps
    assert replay_of(trained).size() == 6 * STEPS
    for other, same in ((learned(1)[1], True), (learned(2)[1], False)):
        assert all(torch.equal(*pair) for pair in zip(first, other, strict=True)) == same


def searcher(**options: Any) -> AgentSearcher:
    walk = ChannelPruningWalk(SPACE, CONSTRAINT)
    return AgentSearcher(walk, find_reward("accuracy"), seed=0, options=DDPGOptions(hidden=16, batch=8, **options))


def test_results_are_told_to_the_oldest_pending_episode() -> None:
    searching = searcher(warmup=9)
    policies = [searching.ask() for _ in range(3)]
    pending = [searching._pending[index].actions for index in range(3)]
    for index, policy in enumerate(policies):
        reward = searching.tell(policy, Evaluation(0.1 * index, {"macs": 1.0}, 0.0, 0.0))
        assert reward == pytest.approx(0.1 * index)
    replay = searching._agent.replay
    for index in range(3):
        rows = slice(index * STEPS, (index + 1) * STEPS)
        assert replay.actions[rows, 0] == pytest.approx(pending[index])
        assert replay.rewards[rows, 0] == pytest.approx([0.1 * index] * STEPS)
    with pytest.raises(TrimtabError, match="no proposal"):
        searching.tell(policies[0], Evaluation(0.0, {"macs": 1.0}, 0.0, 0.0))


def test_learning_starts_after_the_warmup() -> None:
    searching = searcher(warmup=2)
    updates = []
    for _ in range(4):
        searching.tell(searching.ask(), Evaluation(0.5, {"macs": 1.0}, 0.0, 0.0))
        updates.append(searching._agent._n_updates)
    assert updates == [0, 0, STEPS, 2 * STEPS]


def test_a_search_stretches_its_schedule_to_its_length() -> None:
    full, short = DDPGOptions.tuned(2000), DDPGOptions.tuned(120)
    assert (full.warmup, short.warmup, DDPGOptions.tuned(120, warmup=5).warmup) == (100, 12, 5)
    for options, evaluations in ((full, 2000), (short, 120)):
        assert options.decay ** (evaluations - options.warmup) == pytest.approx(0.05)
    assert (full.updates, short.updates) == (1, 2)
    published = DDPGOptions()
    assert (published.hidden, published.actor_lr, published.critic_lr, published.tau) == (300, 1e-4, 1e-3, 0.01)
    assert (published.gamma, published.batch, published.replay, published.baseline) == (1.0, 64, 100, 0.5)
    assert (published.warmup, published.sigma, published.decay, published.updates) == (100, 0.5, 0.95, 1)


def test_equal_accuracies_are_told_apart_by_divergence_but_not_in_the_reward_that_is_recorded() -> None:
    learnt: dict[bool, list[float]] = {}
    for published in (False, True):
        searching = searcher() if published else searcher(divergence=DDPGOptions.tuned(100).divergence)
        learnt[published] = []

        def learn(episode: Any, reward: float, number: int, into: list[float] = learnt[published]) -> None:
            into.append(reward)

        searching._agent.learn_from = learn
        for divergence in (None, 0.1, 2.0, 99.0):
            found = Evaluation(0.5, {"macs": 1.0}, 0.0, 0.0, divergence=divergence)
            assert searching.tell(searching.ask(), found) == 0.5
    assert learnt[True] == [0.5] * 4
    none, near, far, farthest = learnt[False]
    assert none == 0.5 > near > far > farthest > 0.5 - 1 / 256


def test_no_policy_is_proposed_twice_unless_as_published() -> None:
    """With the noise all but gone the actor proposes the same again and again."""
    repeats = {}
    for distinct in (False, True):
        searching = searcher(warmup=1, sigma=0.01, decay=1.0, distinct=distinct)
        policies = []
        for _ in range(20):
            policies.append(searching.ask())
            searching.tell(policies[-1], Evaluation(0.5, {"macs": 1.0}, 0.0, 0.0))
        repeats[distinct] = 20 - len({policy.digest for policy in policies})
    assert repeats[False] > 10
    assert repeats[True] < 3


def test_the_agent_finds_better_policies_than_chance() -> None:
    """On the additive model, where the seeds' spread is small against the difference asked for."""
    graph = conv_chain((16, 16, 32, 32, 64, 64))
    constraint = Constraint("macs", 0.3 * graph.macs)
    space = ChannelSpace.build(graph)
    evaluate = AdditiveEvaluator(graph, constraint)
    best: dict[str, list[float]] = {"ddpg": [], "random": []}
    for name, found in best.items():
        for seed in range(3):
            options = {"hidden": 64} if name == "ddpg" else {}
            searching = make_searcher(
                name, space=space, constraint=constraint, seed=seed, evaluations=120, options=options
            )
            accuracies = []
            for _ in range(120):
                policy = searching.ask()
                evaluation = evaluate(policy)
                searching.tell(policy, evaluation)
                accuracies.append(evaluation.accuracy)
            found.append(max(accuracies))
    assert np.mean(best["ddpg"]) > np.mean(best["random"])
