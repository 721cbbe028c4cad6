"""Random policies of the same budget: the first baseline that every search stands beside."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from automl.searchers.base import Searcher, State
from envs.layerwise import LayerwiseWalk
from envs.reward import Reward
from search_spaces.objective import Evaluation
from search_spaces.policy import CompressionPolicy


class RandomSearcher(Searcher):
    """Uniformly random actions through the same walk, and so the same bounding, that an agent's actions go through.

    Args:
        walk: leads through the layers.
        reward: what `tell` returns; the proposals do not depend on it.
        seed: of the actions.
    """

    def __init__(self, walk: LayerwiseWalk, reward: Reward, seed: int) -> None:
        self._walk = walk
        self._reward = reward
        self._generator = np.random.default_rng(seed)

    def ask(self) -> CompressionPolicy:
        """The policy of a random walk."""
        self._walk.reset()
        done = False
        while not done:
            _, done = self._walk.step(self._generator.uniform(-1.0, 1.0, self._walk.action_space.shape))
        return self._walk.policy()

    def tell(self, policy: CompressionPolicy, evaluation: Evaluation) -> float:
        """The reward; nothing is learned from it."""
        return self._reward(evaluation)

    def state(self) -> State:
        """The generator's state."""
        return {}, {"generator": self._generator.bit_generator.state}

    def restore(self, arrays: Mapping[str, np.ndarray[Any, Any]], values: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        self._generator.bit_generator.state = values["generator"]
