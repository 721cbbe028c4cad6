"""The replay buffer of episodes, and what agents that learn from it share."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import ndtr, ndtri
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from automl.evaluation import one_thread
from automl.searchers.agent_options import DDPGOptions, ReplayOptions, TD3Options
from automl.searchers.agents.base import Agent, Arrays, Episode, FloatArray
from automl.searchers.base import State
from envs.layerwise import Revision


class EpisodeReplay(ReplayBuffer):
    """Gives every step of an episode the final reward, and subtracts a moving-average baseline when sampling.

    An episode is held back until it ends. The baseline follows the mean reward of the sampled batches, the current
    one included, as in AMC's code. Batches are drawn without replacement from a generator of their own.

    Args:
        generator: draws the batches.
        options: the baseline's rate, and what `ReplayOptions` says of `bootstrap`, `ranks` and `taken`.
    """

    def __init__(self, *args: Any, generator: np.random.Generator, options: ReplayOptions, **kwargs: Any) -> None:
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
            dones=torch.tensor(self.dones[picked] if self._options.bootstrap else np.ones_like(self.dones[picked])),
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


def replay_arguments(options: ReplayOptions, steps: int, batches: np.random.Generator) -> dict[str, Any]:
    """What the library's constructors are given.

    Args:
        options: hyperparameters.
        steps: of an episode.
        batches: draws them.
    """
    return {
        "buffer_size": options.replay * steps,
        "learning_starts": options.warmup * steps,
        "batch_size": options.batch,
        "tau": options.tau,
        "gamma": options.gamma,
        "train_freq": (1, "episode"),
        "gradient_steps": -1,
        "replay_buffer_class": EpisodeReplay,
        "replay_buffer_kwargs": {"generator": batches, "options": options},
        "policy_kwargs": {"net_arch": [options.hidden, options.hidden]},
        "device": "cpu",
    }


class ReplayAgent(Agent):
    """Random actions in the warm-up; then every episode is learnt from when its result is there.

    Attributes:
        replay_buffer: an `EpisodeReplay`.
        actor: says what to do.
    """

    BUFFERS: ClassVar[tuple[str, ...]] = ("observations", "next_observations", "actions", "rewards", "dones")

    options: ReplayOptions
    batch_size: int
    replay_buffer: ReplayBuffer | None
    actor: Any
    critic: Any
    set_logger: Any

    @property
    def replay(self) -> EpisodeReplay:
        """The buffer."""
        if not isinstance(self.replay_buffer, EpisodeReplay):
            raise RuntimeError("the agent was built without its replay buffer")
        return self.replay_buffer

    def explore(self, observations: FloatArray, episode: int, widen: float = 1.0) -> FloatArray:
        """Actions to take, in [-1, 1], shape [n, actions]: as the actor says, unless in the warm-up it knows nothing.

        Args:
            observations: float32 [n, features].
            episode: number of the episode, from 0.
            widen: factor of the noise.
        """
        after_warmup = episode - self.options.warmup
        if after_warmup < 0 and not self.begun:
            shape = (len(observations), int(self.replay.action_dim))
            return self.generator.uniform(-1.0, 1.0, shape).astype(np.float32)
        with one_thread(), torch.no_grad():
            return self.noisy(torch.tensor(observations), max(0, after_warmup), widen).astype(np.float32)

    @abstractmethod
    def noisy(self, observations: torch.Tensor, episode: int, widen: float) -> npt.NDArray[np.float64]:
        """The actor's actions with their noise, of an episode that is numbered from the end of the warm-up."""

    def act(self, observation: FloatArray, episode: int, widen: float) -> tuple[FloatArray, FloatArray]:
        """The action of one observation; nothing is noted."""
        return self.explore(observation[None], episode, widen)[0], np.empty(0, dtype=np.float32)

    def revise(self, episode: Episode, revised: Revision) -> Episode:
        """What the walk came to, as if it had been proposed; the episode itself unless actions are stored as taken."""
        if not self.options.taken:
            return episode
        return replace(episode, observations=revised.observations, taken=revised.actions.astype(np.float32))

    def learn_from(self, episode: Episode, reward: float, number: int) -> None:
        """Write the episode's transitions and, after the warm-up, train."""
        steps = len(episode.actions)
        for step, action in enumerate(episode.actions):
            self.replay.add(
                episode.observations[step][None],
                episode.observations[step + 1][None],
                action[None],
                np.array([reward]),
                np.array([step == steps - 1]),
                [{"taken": episode.taken[step]}],
            )
        if number >= self.options.warmup:
            self.train(steps, self.batch_size)

    @abstractmethod
    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """So many updates, times those of `options`."""

    def prepare(self) -> None:
        """The optimisers that the options ask for, and no log."""
        self.actor.optimizer = torch.optim.Adam(self.actor.parameters(), self.options.actor_lr, fused=True)
        self.critic.optimizer = torch.optim.Adam(self.critic.parameters(), self.options.critic_lr, fused=True)
        self.set_logger(Logger(None, []))

    def state(self) -> State:
        """With the buffer."""
        arrays, values = super().state()
        for name in self.BUFFERS:
            arrays[f"replay/{name}"] = getattr(self.replay, name)[: self.replay.size()].copy()
        values |= {
            "replay_position": self.replay.pos,
            "baseline": self.replay.baseline,
            "batches": self.replay.generator.bit_generator.state,
        }
        return arrays, values

    def restore(self, arrays: Arrays, values: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        super().restore(arrays, values)
        stored = len(arrays["replay/rewards"])
        for name in self.BUFFERS:
            getattr(self.replay, name)[:stored] = arrays[f"replay/{name}"]
        self.replay.pos = values["replay_position"]
        self.replay.full = stored == self.replay.buffer_size
        self.replay.baseline = values["baseline"]
        self.replay.generator.bit_generator.state = values["batches"]

    def _update_learning_rate(self, optimizers: Any) -> None:
        """Hook of the library's updates: rates stay as they are; its schedule knows one for all networks."""

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Hook of the library's own `learn()`: the action to take, and the one to store."""
        actions = self.explore(np.asarray(self._last_obs), self._episode_num)
        return actions, actions

    _last_obs: Any
    _episode_num: int


class DeterministicAgent(ReplayAgent):
    """One whose actor gives an action: DDPG and TD3. It explores by noise around that."""

    NETWORKS = ("actor", "actor_target", "critic", "critic_target")
    options: DDPGOptions | TD3Options

    def noisy(self, observations: torch.Tensor, episode: int, widen: float) -> npt.NDArray[np.float64]:
        """Truncated normal noise around the actor's actions, less of it from episode to episode."""
        mean = self.actor(observations).numpy().astype(np.float64)
        return truncated_normal(mean, decayed(self.options, episode, widen), self.generator)

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Of actor and critic or critics."""
        return {"actor": self.actor.optimizer, "critic": self.critic.optimizer}


def decayed(options: DDPGOptions | TD3Options, episode: int, widen: float) -> float:
    """Standard deviation of the noise, of an episode that is numbered from the end of the warm-up."""
    return 2.0 * widen * options.sigma * options.decay**episode  # of a range that is 2 wide


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
