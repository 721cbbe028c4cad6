"""Agents of stable-baselines3 that search: they walk through the layers in `ask` and learn in `tell`."""

from automl.searchers.agent_options import DDPGOptions, PPOOptions, SACOptions, TD3Options
from automl.searchers.agents.ddpg import AmcDDPG, make_ddpg
from automl.searchers.agents.replay import EpisodeReplay, truncated_normal
from automl.searchers.agents.searcher import AgentSearcher

__all__ = [
    "AgentSearcher",
    "AmcDDPG",
    "DDPGOptions",
    "EpisodeReplay",
    "PPOOptions",
    "SACOptions",
    "TD3Options",
    "make_ddpg",
    "truncated_normal",
]
