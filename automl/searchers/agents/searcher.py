"""An agent behind ask and tell: `ask` walks an episode, `tell` rewards it and trains."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from automl.searchers.agent_options import AgentOptions, DDPGOptions, PPOOptions, SACOptions, TD3Options
from automl.searchers.agents.base import Episode, under
from automl.searchers.agents.ddpg import AmcDDPG
from automl.searchers.agents.ppo import SearchPPO
from automl.searchers.agents.sac import SearchSAC
from automl.searchers.agents.td3 import SearchTD3
from automl.searchers.base import Searcher, State
from envs.layerwise import LayerwiseEnv, LayerwiseWalk
from envs.reward import Reward
from search_spaces.errors import InputError, TrimtabError
from search_spaces.objective import Evaluation
from search_spaces.policy import CompressionPolicy

DIGEST = 32
"""Bytes of a policy's digest."""

MOST_DIVERGENCE = 5.0
"""In nats; more than this tells nothing."""

TRIES, WIDEN = 10, 1.4
"""How often an episode is walked to find a policy that is new, and the factor of the noise from try to try."""

AGENTS: Mapping[type[AgentOptions], Any] = {
    DDPGOptions: AmcDDPG,
    TD3Options: SearchTD3,
    SACOptions: SearchSAC,
    PPOOptions: SearchPPO,
}
"""The agent that options belong to."""


class AgentSearcher(Searcher):
    """A search by an agent that walks through the layers.

    Args:
        walk: leads through the layers.
        reward: what an evaluation is worth.
        seed: of everything random.
        options: hyperparameters, those of the agent that is to search.
    """

    def __init__(self, walk: LayerwiseWalk, reward: Reward, seed: int, options: AgentOptions) -> None:
        self._walk = walk
        self._reward = reward
        self._options = options
        env = LayerwiseEnv(walk, _elsewhere, reward)
        self._agent = AGENTS[type(options)](env, walk.steps, options, seed)
        self._asked = 0
        self._told = 0
        self._worst: float | None = None  # of the rewards
        self._pending: deque[Episode] = deque()
        self._proposed: set[str] = set()

    def ask(self) -> CompressionPolicy:
        """Walk one episode with the actor as it is now, and noise."""
        tries = TRIES if self._options.distinct else 1
        for attempt in range(tries):
            episode = self._explore(WIDEN**attempt)
            policy = self._walk.policy()
            if policy.digest not in self._proposed:
                break
        self._proposed.add(policy.digest)
        self._asked += 1
        self._pending.append(episode)
        return policy

    def tell(self, policy: CompressionPolicy, evaluation: Evaluation) -> float:
        """Have the agent learn from the oldest pending episode; a failed one is worth no more than the worst so far.

        Raises:
            TrimtabError: no proposal is pending.
        """
        if not self._pending:
            raise TrimtabError("a result was told that no proposal is waiting for")
        reward = self._reward(evaluation)
        if self._worst is None or reward < self._worst:
            self._worst = reward
        elif evaluation.error is not None:
            reward = self._worst
        lost = self._options.divergence * min(evaluation.divergence or 0.0, MOST_DIVERGENCE)
        self._agent.learn_from(self._pending.popleft(), reward - lost, self._told)
        self._told += 1
        return reward

    def state(self) -> State:
        """The agent's, the pending episodes and what was proposed."""
        arrays, values = self._agent.state()
        for index, episode in enumerate(self._pending):
            arrays |= episode.arrays(f"pending/{index}/")
        arrays["proposed"] = np.frombuffer(bytes.fromhex("".join(sorted(self._proposed))), np.uint8).reshape(-1, DIGEST)
        own = {"agent": self._options.agent, "asked": self._asked, "told": self._told, "worst": self._worst}
        return arrays, {**values, **own}

    def restore(self, arrays: Mapping[str, np.ndarray[Any, Any]], values: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        self._agent.restore(arrays, values)
        self._proposed = {bytes(row).hex() for row in arrays["proposed"]}
        self._asked, self._told, self._worst = values["asked"], values["told"], values["worst"]
        self._pending = deque(
            Episode.of(under(arrays, f"pending/{index}/")) for index in range(self._asked - self._told)
        )

    def begin_with(self, arrays: Mapping[str, np.ndarray[Any, Any]], values: Mapping[str, Any]) -> None:
        """Take over what the agent of another search had learnt, and nothing else of that search.

        Args:
            arrays, values: of its `state`.

        Raises:
            InputError: it is another algorithm's, or its networks have other shapes.
        """
        name = values.get("agent")
        if name != self._options.agent:
            found = "no agent is in it" if name is None else f"the agent in it is {name!r}"
            raise InputError(f"{found}; take the snapshot of a search by {self._options.agent!r}")
        self._agent.begin_with(arrays)

    def _explore(self, widen: float) -> Episode:
        observations, actions, taken, notes = [self._walk.reset()], [], [], []
        done = False
        while not done:
            action, note = self._agent.act(observations[-1], self._asked, widen)
            observation, done = self._walk.step(np.clip(action, -1.0, 1.0))
            observations.append(observation)
            actions.append(action)
            taken.append(self._walk.taken())
            notes.append(note)
        episode = Episode(*(np.stack(rows).astype(np.float32) for rows in (observations, actions, taken, notes)))
        revised = self._walk.revised()
        return episode if revised is None else self._agent.revise(episode, revised)


def _elsewhere(policy: CompressionPolicy) -> Evaluation:
    raise RuntimeError("a searcher's walk is evaluated by whoever asked for it")
