"""Twin delayed DDPG (Fujimoto et al. 2018) of stable-baselines3 as an agent that searches."""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3 import TD3

from automl.searchers.agent_options import TD3Options
from automl.searchers.agents.replay import ReplayAgent, decayed, replay_arguments, truncated_normal


class SearchTD3(ReplayAgent, TD3):
    """TD3 with the exploration of `AmcDDPG`; updates are the library's.

    Args:
        env: an environment with a Box action space in [-1, 1].
        steps: steps of each of its episodes.
        options: hyperparameters.
        seed: of everything random.
    """

    NETWORKS = ("actor", "actor_target", "critic", "critic_target")
    options: TD3Options

    def __init__(self, env: gymnasium.Env[Any, Any], steps: int, options: TD3Options, seed: int) -> None:
        self.options = options
        self.generator, batches = np.random.default_rng(seed).spawn(2)
        with self.randomness():
            super().__init__(
                "MlpPolicy",
                env,
                policy_delay=options.delay,
                target_policy_noise=options.smoothing,
                **replay_arguments(options, steps, batches),
            )
        self.prepare()

    def noisy(self, observations: torch.Tensor, episode: int, widen: float) -> npt.NDArray[np.float64]:
        """Truncated normal noise around the actor's actions, less of it from episode to episode."""
        mean = self.actor(observations).numpy().astype(np.float64)
        return truncated_normal(mean, decayed(self.options, episode, widen), self.generator)

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Of actor and critics."""
        return {"actor": self.actor.optimizer, "critic": self.critic.optimizer}

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """The library's updates, their draws from our generator."""
        with self.randomness():
            super(ReplayAgent, self).train(gradient_steps * self.options.updates, batch_size)
