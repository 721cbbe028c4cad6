"""AMC's DDPG on stable-baselines3: what the library's own lacks of the published agent, and nothing else.

Usable as any algorithm of stable-baselines3 (`make_ddpg(env).learn(...)`), and the learner inside `DDPGSearcher`.
"""

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from scipy.special import ndtr, ndtri
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn
from torch.nn import functional as F

from automl.evaluation import one_thread
from search_spaces.errors import InputError

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class DDPGOptions:
    """Hyperparameters; the defaults are AMC's (He et al. 2018, section 4, and its code), `tuned` differs in a few.

    Attributes:
        hidden: units of both hidden layers of actor and critic.
        actor_lr, critic_lr: Adam's learning rates.
        tau: share of the learned weights that the target networks take over at each update.
        gamma: discount.
        batch: transitions an update.
        replay: episodes that the replay buffer holds.
        baseline: how fast the reward baseline follows the mean reward of the batches, in (0, 1].
        warmup: episodes of uniformly random actions before learning starts.
        sigma: exploration noise after the warm-up, as a share of the actions' range.
        decay: factor of sigma from episode to episode.
        updates: updates for each step of an episode.
        bootstrap: whether the critic learns from its own estimate of the next state; otherwise from the episode's
            reward alone, which no error of its own can run away with.
        ranks: whether rewards are replaced by their rank among those in the buffer, which tells policies near chance
            level apart as well as those near the optimum; otherwise the moving-average baseline is subtracted.
        taken: whether an action is stored as what it came to after bounding and rounding, and an episode as what the
            end of its walk made of it, not as proposed.
        distinct: whether a policy that was proposed before is proposed again; otherwise the episode is walked anew
            with more noise, because an evaluation gives the same result every time.
    """

    hidden: int = 300
    actor_lr: float = 1e-4
    critic_lr: float = 1e-3
    tau: float = 0.01
    gamma: float = 1.0
    batch: int = 64
    replay: int = 100
    baseline: float = 0.5
    warmup: int = 100
    sigma: float = 0.5
    decay: float = 0.95
    updates: int = 1
    bootstrap: bool = True
    ranks: bool = False
    taken: bool = False
    distinct: bool = False

    @classmethod
    def tuned(cls, evaluations: int, warmup: int | None = None) -> "DDPGOptions":
        """The defaults of a search that does not ask for the published agent.

        Of the published hyperparameters these change: the warm-up takes at most a quarter of the search, the noise
        decays to 5 % of where it starts by the end of the search, and a search of under 200 episodes makes two
        updates a step.

        Args:
            evaluations: episodes of the search.
            warmup: episodes of random actions, where the user has set them.
        """
        published = cls()
        random = min(published.warmup, evaluations // 4) if warmup is None else warmup
        decay = 0.05 ** (1.0 / max(1, evaluations - random))
        updates = 2 if evaluations < 200 else 1
        return cls(warmup=random, decay=decay, updates=updates, bootstrap=False, ranks=True, taken=True, distinct=True)

    def __post_init__(self) -> None:
        for name in ("hidden", "batch", "replay", "updates"):
            if getattr(self, name) < 1:
                raise InputError(f"ddpg: {name} is at least 1, got {getattr(self, name)}")
        for name in ("actor_lr", "critic_lr", "tau", "baseline", "decay", "gamma"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise InputError(f"ddpg: {name} lies in (0, 1], got {getattr(self, name)}")
        if self.warmup < 0 or self.sigma < 0.0:
            raise InputError(f"ddpg: warmup and sigma are not negative, got {self.warmup} and {self.sigma}")


class EpisodeReplay(ReplayBuffer):
    """Gives every step of an episode the final reward, and subtracts a moving-average baseline when sampling.

    An episode is held back until it ends. The baseline follows the mean reward of the sampled batches, the current
    one included, as in AMC's code. Batches are drawn without replacement from a generator of their own.

    Args:
        generator: draws the batches.
        options: the baseline's rate, and what `DDPGOptions` says of `ranks` and `taken`.
    """

    def __init__(self, *args: Any, generator: np.random.Generator, options: DDPGOptions, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "handle_timeout_termination": False})
        self.generator = generator
        self.baseline: float | None = None
        self._options = options
        self._held: list[tuple[Any, ...]] = []

    def add(
        self,
        obs: np.ndarray[Any, Any],
        next_obs: np.ndarray[Any, Any],
        action: np.ndarray[Any, Any],
        reward: np.ndarray[Any, Any],
        done: np.ndarray[Any, Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Hold a step back; at the end of its episode write all of them with the last one's reward."""
        self._held.append((obs, next_obs, infos[0]["taken"] if self._options.taken else action, done, infos))
        if done[0]:
            if self._options.taken and "revised" in infos[0]:
                seen, did = infos[0]["revised"].observations, infos[0]["revised"].actions
                self._held = [
                    (seen[step][None], seen[step + 1][None], did[step][None], *held[3:])
                    for step, held in enumerate(self._held)
                ]
            for held_obs, held_next, held_action, held_done, held_infos in self._held:
                super().add(held_obs, held_next, held_action, reward, held_done, held_infos)
            self._held.clear()

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """A batch with corrected rewards; with replacement only while there are too few transitions."""
        stored = self.size()
        picked = self.generator.choice(stored, batch_size, replace=stored < batch_size)
        rewards = self._ranks(self.rewards[picked]) if self._options.ranks else self._above_baseline(picked)
        return ReplayBufferSamples(
            observations=torch.tensor(self.observations[picked, 0]),
            actions=torch.tensor(self.actions[picked, 0]),
            next_observations=torch.tensor(self.next_observations[picked, 0]),
            dones=torch.tensor(self.dones[picked]),
            rewards=torch.tensor(rewards.astype(np.float32)),
        )

    def _above_baseline(self, picked: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        rewards = self.rewards[picked].astype(np.float64)
        mean = float(rewards.mean())
        if self.baseline is None:
            self.baseline = mean
        else:
            self.baseline += self._options.baseline * (mean - self.baseline)
        return rewards - self.baseline

    def _ranks(self, rewards: FloatArray) -> npt.NDArray[np.float64]:
        """Ranks among all rewards stored, equal ones sharing theirs, scaled to mean 0 and variance 1."""
        stored = np.sort(self.rewards[: self.size(), 0])
        below = np.searchsorted(stored, rewards, side="left") + np.searchsorted(stored, rewards, side="right")
        return np.asarray((below / len(stored) - 1.0) * np.sqrt(3.0))


class AmcDDPG(DDPG):
    """DDPG with AMC's exploration: truncated normal noise around the actor's output, decaying by episode.

    All randomness comes from `seed`; torch's, numpy's and Python's global generators are neither read nor changed.

    Args:
        env: an environment with a Box action space in [-1, 1].
        steps: steps of each of its episodes.
        options: hyperparameters.
        seed: of weights, noise and batches.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], steps: int, options: DDPGOptions, seed: int) -> None:
        streams = np.random.SeedSequence(seed).spawn(3)
        self.options = options
        self.noise = np.random.default_rng(streams[0])
        with torch.random.fork_rng(devices=[]):  # the library draws weights, which are drawn anew below
            super().__init__(
                "MlpPolicy",
                env,
                buffer_size=options.replay * steps,
                learning_starts=options.warmup * steps,
                batch_size=options.batch,
                tau=options.tau,
                gamma=options.gamma,
                train_freq=(1, "episode"),
                gradient_steps=-1,
                replay_buffer_class=EpisodeReplay,
                replay_buffer_kwargs={
                    "generator": np.random.default_rng(streams[1]),
                    "options": options,
                },
                policy_kwargs={"net_arch": [options.hidden, options.hidden]},
                device="cpu",
            )
        self._initialise(torch.Generator().manual_seed(int(streams[2].generate_state(1, np.uint64)[0] >> 1)))
        self.actor.optimizer = torch.optim.Adam(self.actor.parameters(), options.actor_lr, fused=True)
        self.critic.optimizer = torch.optim.Adam(self.critic.parameters(), options.critic_lr, fused=True)

    def explore(self, observations: FloatArray, episode: int, widen: float = 1.0) -> FloatArray:
        """Actions to take, in [-1, 1], shape [n, actions]: random in the warm-up, then noise around the actor.

        Args:
            observations: float32 [n, features].
            episode: number of the episode, from 0.
            widen: factor of the noise.
        """
        shape = (len(observations), int(np.prod(self.action_space.shape or (1,))))
        after_warmup = episode - self.options.warmup
        if after_warmup < 0:
            return self.noise.uniform(-1.0, 1.0, shape).astype(np.float32)
        with one_thread(), torch.no_grad():
            mean = self.actor(torch.tensor(observations)).numpy().astype(np.float64)
        sigma = 2.0 * widen * self.options.sigma * self.options.decay**after_warmup  # of a range that is 2 wide
        return truncated_normal(mean, sigma, self.noise).astype(np.float32)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """One update of critic, actor and targets for each gradient step (Lillicrap et al. 2016, algorithm 1)."""
        if self.replay_buffer is None:
            raise RuntimeError("the agent was loaded without a replay buffer")
        critic, critic_target = self.critic.q_networks[0], self.critic_target.q_networks[0]
        targets: list[torch.Tensor] = [*self.critic_target.parameters(), *self.actor_target.parameters()]
        sources: list[torch.Tensor] = [*self.critic.parameters(), *self.actor.parameters()]
        with one_thread():
            for _ in range(gradient_steps * self.options.updates):
                batch = self.replay_buffer.sample(batch_size)
                wanted = batch.rewards
                if self.options.bootstrap:
                    with torch.no_grad():
                        next_actions = self.actor_target.mu(batch.next_observations)
                        next_values = critic_target(torch.cat((batch.next_observations, next_actions), 1))
                        wanted = wanted + (1.0 - batch.dones) * self.gamma * next_values
                self.critic.optimizer.zero_grad()
                values = critic(torch.cat((batch.observations, batch.actions), 1))
                torch.autograd.backward(F.mse_loss(values, wanted))
                self.critic.optimizer.step()

                self.actor.optimizer.zero_grad()
                self.critic.requires_grad_(False)  # the actor's loss needs no gradient of the critic's weights
                values = critic(torch.cat((batch.observations, self.actor.mu(batch.observations)), 1))
                torch.autograd.backward(-values.mean())
                self.critic.requires_grad_(True)
                self.actor.optimizer.step()

                with torch.no_grad():
                    torch._foreach_lerp_(targets, sources, self.tau)
        self._n_updates += gradient_steps * self.options.updates

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Hook of the library's own `learn()`: the action to take, and the one to store."""
        actions = self.explore(np.asarray(self._last_obs), self._episode_num)
        return actions, actions

    def _initialise(self, generator: torch.Generator) -> None:
        """Draw the weights as AMC's networks do: uniform within 1 / sqrt(inputs) of each layer.

        AMC's critic adds two layers at its input, one for the state and one for the action, so the action's weights
        are those of a layer with a single input (halved, for an action space twice as wide).
        """
        actor, critic = self._layers(self.actor.mu), self._layers(self.critic.q_networks[0])
        with torch.no_grad():
            for layer in (*actor, *critic):
                _draw(layer.weight, layer.in_features, generator)
                _draw(layer.bias, layer.in_features, generator)
            actions = actor[-1].out_features
            state, action = critic[0].weight.tensor_split([-actions], 1)
            bias: torch.Tensor = critic[0].bias
            _draw(state, state.shape[1], generator)
            _draw(bias, state.shape[1], generator)
            _draw(action, actions, generator).div_(2.0)
            bias.add_(_draw(torch.empty_like(bias), actions, generator)).add_(action.sum(1))
            actor[-1].weight.div_(2.0)  # the library's tanh(x / 2) is AMC's sigmoid(x), stretched to [-1, 1]
            actor[-1].bias.div_(2.0)
        self.actor_target.load_state_dict(self.actor.state_dict())
        self.critic_target.load_state_dict(self.critic.state_dict())

    @staticmethod
    def _layers(network: nn.Module) -> list[nn.Linear]:
        return [layer for layer in network.children() if isinstance(layer, nn.Linear)]


def make_ddpg(env: gymnasium.Env[Any, Any], steps: int, seed: int = 0, **options: Any) -> AmcDDPG:
    """AMC's agent for one's own loop or stable-baselines3's: `make_ddpg(env, env.walk.steps).learn(total_timesteps)`.

    Args:
        env: such as `ChannelPruningEnv`.
        steps: steps of an episode.
        seed: of all that is random.
        options: see `DDPGOptions`.
    """
    return AmcDDPG(env, steps, DDPGOptions(**options), seed)


def _draw(parameter: torch.Tensor, inputs: int, generator: torch.Generator) -> torch.Tensor:
    """Fills the parameter of a layer with so many inputs."""
    return parameter.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)


def truncated_normal(
    mean: npt.NDArray[np.float64], sigma: float, generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Draws from normal distributions truncated to [-1, 1], by inversion; `mean` lies in [-1, 1]."""
    uniform = generator.random(mean.shape)
    if sigma == 0.0:
        return mean
    low, high = ndtr((-1.0 - mean) / sigma), ndtr((1.0 - mean) / sigma)
    drawn: npt.NDArray[np.float64] = mean + sigma * ndtri(low + uniform * (high - low))
    return np.clip(drawn, -1.0, 1.0)
