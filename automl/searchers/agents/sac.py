"""Soft actor-critic (Haarnoja et al. 2018) of stable-baselines3 as an agent that searches."""

from collections.abc import Mapping
from math import log
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3 import SAC

from automl.searchers.agent_options import SACOptions
from automl.searchers.agents.base import Arrays
from automl.searchers.agents.replay import ReplayAgent, replay_arguments
from automl.searchers.base import State

UNIFORM_NATS = log(2.0)
"""Entropy of a uniformly random number in [-1, 1]."""
FIRST_TEMPERATURE = 0.1
"""Weight of the entropy at the start; rewards are of the order of 1."""


class SearchSAC(ReplayAgent, SAC):
    """SAC; its actor's own randomness explores, and the temperature is learnt. Updates are the library's.

    Args:
        env: an environment with a Box action space in [-1, 1].
        steps: steps of each of its episodes.
        options: hyperparameters.
        seed: of everything random.
    """

    NETWORKS = ("actor", "critic", "critic_target")
    options: SACOptions

    def __init__(self, env: gymnasium.Env[Any, Any], steps: int, options: SACOptions, seed: int) -> None:
        self.options = options
        self.generator, batches = np.random.default_rng(seed).spawn(2)
        actions = int(np.prod(env.action_space.shape or (1,)))
        with self.randomness():
            super().__init__(
                "MlpPolicy",
                env,
                learning_rate=options.actor_lr,
                ent_coef=f"auto_{FIRST_TEMPERATURE}",
                target_entropy=actions * (UNIFORM_NATS - options.entropy),
                **replay_arguments(options, steps, batches),
            )
        self.prepare()

    def noisy(self, observations: torch.Tensor, episode: int, widen: float) -> npt.NDArray[np.float64]:
        """Drawn from the actor's distribution."""
        mean, log_std, _ = self.actor.get_action_dist_params(observations)
        normal = self.generator.standard_normal(mean.shape)
        drawn: npt.NDArray[np.float64] = np.tanh(mean.numpy() + widen * np.exp(log_std.numpy()) * normal)
        return drawn

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Of actor, critics and temperature."""
        _, optimizer = self._temperature
        return {"actor": self.actor.optimizer, "critic": self.critic.optimizer, "temperature": optimizer}

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """The library's updates, their draws from our generator."""
        with self.randomness():
            super(ReplayAgent, self).train(gradient_steps * self.options.updates, batch_size)

    def state(self) -> State:
        """With the temperature."""
        arrays, values = super().state()
        return {**arrays, "log_temperature": self._temperature[0].detach().numpy().copy()}, values

    def restore(self, arrays: Arrays, values: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        super().restore(arrays, values)
        with torch.no_grad():
            self._temperature[0].copy_(torch.tensor(arrays["log_temperature"]))

    def begin_with(self, arrays: Arrays) -> None:
        """With the temperature, where it is there."""
        super().begin_with(arrays)
        learnt = arrays.get("log_temperature")
        if learnt is not None and learnt.shape == (1,):
            with torch.no_grad():
                self._temperature[0].copy_(torch.tensor(learnt))

    @property
    def _temperature(self) -> tuple[torch.Tensor, torch.optim.Optimizer]:
        if self.log_ent_coef is None or self.ent_coef_optimizer is None:
            raise RuntimeError("the temperature of this agent is not learnt")
        return self.log_ent_coef, self.ent_coef_optimizer
