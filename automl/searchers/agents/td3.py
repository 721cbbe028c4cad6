"""Twin delayed DDPG (Fujimoto et al. 2018) of stable-baselines3 as an agent that searches."""

from typing import Any

import gymnasium
import numpy as np
from stable_baselines3 import TD3

from automl.searchers.agent_options import TD3Options
from automl.searchers.agents.replay import DeterministicAgent, ReplayAgent, replay_arguments


class SearchTD3(DeterministicAgent, TD3):
    """TD3 with the exploration of `AmcDDPG`; updates are the library's.

    Args:
        env: an environment with a Box action space in [-1, 1].
        steps: steps of each of its episodes.
        options: hyperparameters.
        seed: of everything random.
    """

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

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """The library's updates, their draws from our generator."""
        with self.randomness():
            super(ReplayAgent, self).train(gradient_steps * self.options.updates, batch_size)
