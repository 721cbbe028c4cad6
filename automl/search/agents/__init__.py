"""Agents of stable-baselines3 that search: they walk through the layers in `ask` and learn in `tell`."""

from automl.search.agent_options import DDPGOptions, PPOOptions, SACOptions, TD3Options
from automl.search.agents.ddpg import AmcDDPG, make_ddpg
from automl.search.agents.replay import EpisodeReplay, truncated_normal
from automl.search.agents.searcher import AgentSearcher

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
