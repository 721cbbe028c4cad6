"""AMC's agent behind ask and tell: `ask` walks an episode, `tell` rewards it and trains."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from automl.search.agents import AmcDDPG, DDPGOptions, EpisodeReplay, FloatArray
from automl.search.base import Searcher, State
from envs.layerwise import LayerwiseEnv, LayerwiseWalk
from envs.reward import Reward
from search_spaces.errors import TrimtabError
from search_spaces.objective import Evaluation
from search_spaces.policy import CompressionPolicy

NETWORKS = ("actor", "actor_target", "critic", "critic_target")
MOMENTS = ("exp_avg", "exp_avg_sq")
REPLAY = ("observations", "next_observations", "actions", "rewards", "dones")
DIGEST = 32
"""Bytes of a policy's digest."""

TRIES, WIDEN = 10, 1.4
"""How often an episode is walked to find a policy that is new, and the factor of the noise from try to try."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Episode:
    """What an asked episode saw and did.

    Attributes:
        observations: float32 [steps + 1, features], the state after the last step included.
        actions: float32 [steps, actions], as proposed.
        taken: the same after bounding and rounding.
    """

    observations: FloatArray
    actions: FloatArray
    taken: FloatArray


class DDPGSearcher(Searcher):
    """AMC's DDPG (He et al. 2018).

    Args:
        walk: leads through the layers.
        reward: what an evaluation is worth.
        seed: of everything random.
        options: hyperparameters.
    """

    def __init__(self, walk: LayerwiseWalk, reward: Reward, seed: int, options: DDPGOptions) -> None:
        self._walk = walk
        self._reward = reward
        self._agent = AmcDDPG(LayerwiseEnv(walk, _elsewhere, reward), walk.steps, options, seed)
        self._asked = 0
        self._told = 0
        self._pending: deque[Episode] = deque()
        self._proposed: set[str] = set()

    def ask(self) -> CompressionPolicy:
        """Walk one episode with the actor as it is now, and noise."""
        tries = TRIES if self._agent.options.distinct else 1
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
        """Write the transitions of the oldest pending episode and, after the warm-up, train.

        Raises:
            TrimtabError: no proposal is pending.
        """
        if not self._pending:
            raise TrimtabError("a result was told that no proposal is waiting for")
        episode = self._pending.popleft()
        reward = self._reward(evaluation)
        steps = len(episode.actions)
        for step, action in enumerate(episode.actions):
            self._replay.add(
                episode.observations[step][None],
                episode.observations[step + 1][None],
                action[None],
                np.array([reward]),
                np.array([step == steps - 1]),
                [{"taken": episode.taken[step]}],
            )
        if self._told >= self._agent.options.warmup:
            self._agent.train(steps, self._agent.batch_size)
        self._told += 1
        return reward

    def state(self) -> State:
        """Networks, Adam's moments, replay buffer, generators, the pending episodes and what was proposed."""
        arrays: dict[str, Array] = {}
        for name in NETWORKS:
            for key, tensor in getattr(self._agent, name).state_dict().items():
                arrays[f"{name}/{key}"] = tensor.numpy().copy()
        updates = 0
        for name in ("actor", "critic"):
            for index, moments in getattr(self._agent, name).optimizer.state_dict()["state"].items():
                updates = int(moments["step"])
                for key in MOMENTS:
                    arrays[f"{name}_adam/{index}/{key}"] = moments[key].numpy().copy()
        for name in REPLAY:
            arrays[f"replay/{name}"] = getattr(self._replay, name)[: self._replay.size()].copy()
        for index, episode in enumerate(self._pending):
            for field in fields(Episode):
                arrays[f"pending/{index}/{field.name}"] = getattr(episode, field.name)
        arrays["proposed"] = np.frombuffer(bytes.fromhex("".join(sorted(self._proposed))), np.uint8).reshape(-1, DIGEST)
        values = {
            "asked": self._asked,
            "told": self._told,
            "updates": updates,
            "replay_position": self._replay.pos,
            "baseline": self._replay.baseline,
            "noise": self._agent.noise.bit_generator.state,
            "batches": self._replay.generator.bit_generator.state,
        }
        return arrays, values

    def restore(self, arrays: Mapping[str, Array], values: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        for name in NETWORKS:
            getattr(self._agent, name).load_state_dict(
                {key: torch.tensor(array) for key, array in _under(arrays, f"{name}/").items()}
            )
        updates = torch.tensor(float(values["updates"]), dtype=torch.float32)
        for name in ("actor", "critic"):
            moments: dict[int, dict[str, torch.Tensor]] = {}
            for key, array in _under(arrays, f"{name}_adam/").items():
                index, moment = key.split("/")
                entry = moments.setdefault(int(index), {"step": updates.clone()})
                entry[moment] = torch.tensor(array)
            optimizer = getattr(self._agent, name).optimizer
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        stored = len(arrays["replay/rewards"])
        for name in REPLAY:
            getattr(self._replay, name)[:stored] = arrays[f"replay/{name}"]
        self._replay.pos = values["replay_position"]
        self._replay.full = stored == self._replay.buffer_size
        self._replay.baseline = values["baseline"]
        self._replay.generator.bit_generator.state = values["batches"]
        self._agent.noise.bit_generator.state = values["noise"]
        self._proposed = {bytes(row).hex() for row in arrays["proposed"]}
        self._asked, self._told = values["asked"], values["told"]
        self._pending = deque(
            Episode(**{field.name: arrays[f"pending/{index}/{field.name}"] for field in fields(Episode)})
            for index in range(self._asked - self._told)
        )

    def _explore(self, widen: float) -> Episode:
        observations, actions, taken = [self._walk.reset()], [], []
        done = False
        while not done:
            action = self._agent.explore(observations[-1][None], self._asked, widen)[0]
            observation, done = self._walk.step(action)
            observations.append(observation)
            actions.append(action)
            taken.append(self._walk.taken())
        if self._agent.options.taken and (revised := self._walk.revised()) is not None:
            observations, taken = list(revised.observations), list(revised.actions)
        return Episode(*(np.stack(rows).astype(np.float32) for rows in (observations, actions, taken)))

    @property
    def _replay(self) -> EpisodeReplay:
        replay = self._agent.replay_buffer
        if not isinstance(replay, EpisodeReplay):
            raise RuntimeError("the agent was built without its replay buffer")
        return replay


def _under(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {key[len(prefix) :]: array for key, array in arrays.items() if key.startswith(prefix)}


def _elsewhere(policy: CompressionPolicy) -> Evaluation:
    raise RuntimeError("a searcher's walk is evaluated by whoever asked for it")
