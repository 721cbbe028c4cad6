"""AMC's DDPG on stable-baselines3: what the library's own lacks of the published agent, and nothing else.

Usable as any algorithm of stable-baselines3 (`make_ddpg(env).learn(...)`), and one of the agents that search.
"""

from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import DDPG
from torch import nn
from torch.nn import functional as F

from automl.evaluation import one_thread
from automl.searchers.agent_options import DDPGOptions
from automl.searchers.agents.replay import DeterministicAgent, replay_arguments


class AmcDDPG(DeterministicAgent, DDPG):
    """DDPG with AMC's exploration: truncated normal noise around the actor's output, decaying by episode.

    All randomness comes from `seed`; torch's, numpy's and Python's global generators are neither read nor changed.

    Args:
        env: an environment with a Box action space in [-1, 1].
        steps: steps of each of its episodes.
        options: hyperparameters.
        seed: of weights, noise and batches.
    """

    options: DDPGOptions

    def __init__(self, env: gymnasium.Env[Any, Any], steps: int, options: DDPGOptions, seed: int) -> None:
        streams = np.random.SeedSequence(seed).spawn(3)
        self.options = options
        self.generator = np.random.default_rng(streams[0])
        with torch.random.fork_rng(devices=[]):  # the library draws weights, which are drawn anew below
            super().__init__(
                "MlpPolicy",
                env,
                **replay_arguments(options, steps, np.random.default_rng(streams[1])),
            )
        self._initialise(torch.Generator().manual_seed(int(streams[2].generate_state(1, np.uint64)[0] >> 1)))
        self.prepare()

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
