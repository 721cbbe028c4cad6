"""Proximal policy optimisation (Schulman et al. 2017) of stable-baselines3 as an agent that searches."""

from collections.abc import Iterator, Mapping
from math import log
from typing import Any

import gymnasium
import numpy as np
import torch
from scipy.stats import rankdata
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from automl.evaluation import one_thread
from automl.searchers.agent_options import PPOOptions
from automl.searchers.agents.base import Agent, Arrays, Episode, FloatArray, under
from automl.searchers.base import State


class Rollouts(RolloutBuffer):
    """The library's, in batches drawn from a generator of our own.

    Args:
        generator: draws the batches.
    """

    PARTS = ("observations", "actions", "values", "log_probs", "advantages", "returns")

    def __init__(self, *args: Any, generator: np.random.Generator, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._generator = generator

    def get(self, batch_size: int | None = None) -> Iterator[RolloutBufferSamples]:  # type: ignore[override]
        """All transitions once, in batches."""
        if not self.generator_ready:
            for name in self.PARTS:
                setattr(self, name, self.swap_and_flatten(getattr(self, name)))
            self.generator_ready = True
        order = self._generator.permutation(self.buffer_size * self.n_envs)
        size = batch_size or len(order)
        for start in range(0, len(order), size):
            yield self._get_samples(order[start : start + size])


class SearchPPO(Agent, PPO):
    """PPO on batches of episodes whose results were told; updates are the library's.

    Values and log-probabilities are those of the actor that walked an episode, so one that was asked for before an
    update and told after it is weighted as the clipped objective has it. Rewards are ranks among all told so far, with
    mean 0 and variance 1, as for the other agents.

    Args:
        env: an environment with a Box action space in [-1, 1].
        steps: steps of each of its episodes.
        options: hyperparameters.
        seed: of everything random.
    """

    NETWORKS = ("policy",)
    options: PPOOptions

    def __init__(self, env: gymnasium.Env[Any, Any], steps: int, options: PPOOptions, seed: int) -> None:
        self.options = options
        self.generator = np.random.default_rng(seed)
        with self.randomness():
            super().__init__(
                "MlpPolicy",
                env,
                learning_rate=options.lr,
                n_steps=max(2, steps),  # more than one transition; the buffer below is what is used
                batch_size=max(2, steps),
                n_epochs=options.epochs,
                gamma=options.gamma,
                gae_lambda=options.gae,
                clip_range=options.clip,
                ent_coef=options.entropy,
                policy_kwargs={
                    "net_arch": {"pi": [options.hidden] * 2, "vf": [options.hidden] * 2},
                    "log_std_init": log(options.spread),
                },
                device="cpu",
            )
        self.batch_size = options.batch
        self.rollout_buffer = Rollouts(
            steps,
            self.observation_space,
            self.action_space,
            "cpu",
            options.gae,
            options.gamma,
            options.episodes,
            generator=self.generator,
        )
        self.set_logger(Logger(None, []))
        self._batch: list[tuple[Episode, int]] = []
        self._rewards: list[float] = []

    def act(self, observation: FloatArray, episode: int, widen: float) -> tuple[FloatArray, FloatArray]:
        """Drawn from the actor's normal distribution, not clipped; notes are its value and log-probability."""
        seen = torch.tensor(observation[None])
        with one_thread(), torch.no_grad():
            distribution = self.policy.get_distribution(seen)
            mean, spread = distribution.mode()[0].numpy(), self.policy.log_std.exp().numpy()
            action = (mean + widen * spread * self.generator.standard_normal(mean.shape)).astype(np.float32)
            log_probability = distribution.log_prob(torch.tensor(action[None]))
            value = self.policy.predict_values(seen)
        return action, np.array([value.item(), log_probability.item()], dtype=np.float32)

    def learn_from(self, episode: Episode, reward: float, number: int) -> None:
        """Keep the episode; a full batch of them is learnt from."""
        self._batch.append((episode, len(self._rewards)))
        self._rewards.append(reward)
        if len(self._batch) == self.options.episodes:
            self._fill()
            with self.randomness():
                self.train()
            self._batch.clear()

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """One for actor and critic."""
        return {"policy": self.policy.optimizer}

    def state(self) -> State:
        """With the rewards and the episodes that wait for the next update."""
        arrays, values = super().state()
        arrays["rewards"] = np.array(self._rewards, dtype=np.float64)
        for index, (episode, _) in enumerate(self._batch):
            arrays |= episode.arrays(f"batch/{index}/")
        return arrays, {**values, "batch": [number for _, number in self._batch]}

    def restore(self, arrays: Arrays, values: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        super().restore(arrays, values)
        self._rewards = arrays["rewards"].tolist()
        episodes = (Episode.of(under(arrays, f"batch/{index}/")) for index in range(len(values["batch"])))
        self._batch = list(zip(episodes, values["batch"], strict=True))

    def _fill(self) -> None:
        """The buffer with the batch's episodes side by side, as if each had an environment of its own."""
        ranks = rankdata(self._rewards) - 0.5
        rewards = (2.0 * ranks / len(ranks) - 1.0) * np.sqrt(3.0)
        final = np.array([rewards[number] for _, number in self._batch])
        buffer, steps = self.rollout_buffer, self.rollout_buffer.buffer_size
        buffer.reset()
        for step in range(steps):
            notes = torch.tensor(np.stack([episode.notes[step] for episode, _ in self._batch]))
            buffer.add(
                np.stack([episode.observations[step] for episode, _ in self._batch]),
                np.stack([episode.actions[step] for episode, _ in self._batch]),
                final if step == steps - 1 else np.zeros_like(final),
                np.full(len(final), step == 0),
                notes[:, 0],
                notes[:, 1],
            )
        buffer.compute_returns_and_advantage(torch.zeros(len(final)), np.ones(len(final)))
