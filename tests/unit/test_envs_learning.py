"""Agents of stable-baselines3 take their steps in every environment: PPO in all, DQN and SAC where actions allow."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm

from automl.testing.problems import AdditiveEvaluator, cifar_resnet
from backends.bit_prices import counted_price
from backends.point_prices import PointPrices
from search_spaces.building import SpaceOptions, build_space
from search_spaces.objective import Constraint

GRAPH = cifar_resnet(8)
BYTES = Constraint("weight_bytes", 0.5 * GRAPH.weight_bytes)
NAMES = ("ChannelPruning", "MixedPrecision", "LowRank", "Joint")


def arguments(name: str) -> dict[str, Any]:
    if name == "ChannelPruning":
        return {"graph": GRAPH, "space": build_space(GRAPH, SpaceOptions()).channels, "constraint": BYTES}
    if name == "MixedPrecision":
        return {"graph": GRAPH, "price": counted_price(GRAPH), "limit": BYTES.limit, "whole": 0.9}
    options = SpaceOptions(channels=False, rank=(0.25, 0.5)) if name == "LowRank" else SpaceOptions(weight_bits=(2, 8))
    space = build_space(GRAPH, options)
    return {"space": space, "constraints": (BYTES,), "prices": PointPrices(space)}


def agents(space: spaces.Space[Any]) -> list[type[BaseAlgorithm]]:
    """Those that take such actions."""
    if isinstance(space, spaces.Box):
        return [PPO, SAC]
    return [PPO, DQN] if isinstance(space, spaces.Discrete) else [PPO]


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_agents_learn(name: str, discrete: bool) -> None:
    env = gymnasium.make(
        f"envs:trimtab/{name}-v0",
        evaluator=AdditiveEvaluator(GRAPH, BYTES),
        discrete=discrete,
        **arguments(name),
    )
    found = agents(env.action_space)
    assert len(found) == 1 + (name != "Joint" or not discrete)
    for agent in found:
        options: dict[str, Any] = {"n_steps": 16, "batch_size": 8} if agent is PPO else {"learning_starts": 8}
        learner = agent("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, seed=0, device="cpu", **options)
        before = {name: value.clone() for name, value in learner.policy.state_dict().items()}
        learner.learn(32)
        after = learner.policy.state_dict()
        assert any(not np.array_equal(before[name], value) for name, value in after.items())
        assert learner.num_timesteps == 32
