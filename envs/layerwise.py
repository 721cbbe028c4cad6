"""The episode that every environment shares: layer by layer through a network, and one evaluation at the end."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from envs.reward import Reward
from search_spaces.errors import InputError
from search_spaces.objective import Evaluation
from search_spaces.policy import CompressionPolicy

Evaluator = Callable[[CompressionPolicy], Evaluation]
Step = tuple["Observation", float, bool, bool, dict[str, Any]]
"""What Gymnasium's `step` returns."""
Observation = npt.NDArray[np.float32]
Action = npt.NDArray[np.floating[Any]]


@runtime_checkable
class DistantEvaluator(Protocol):
    """An evaluator that works elsewhere, so that several policies can be evaluated at once."""

    def submit(self, policy: CompressionPolicy) -> Callable[[], Evaluation]:
        """Have a policy evaluated; what is returned waits for it."""


@dataclass(frozen=True)
class Revision:
    """The episode of an agent that had proposed at once what its walk came to in the end.

    Attributes:
        observations: float32 [steps + 1, features], the state after the last step included.
        actions: [steps, ...].
    """

    observations: Observation
    actions: npt.NDArray[Any]


class LayerwiseWalk(ABC):
    """One pass over the layers, without any evaluation: actions in, a compression policy out.

    An environment evaluates the policy on the spot. A searcher walks in `ask` and leaves the evaluation to others.

    Attributes:
        steps: decisions an episode has.
        observation_space: float32 Box in [0, 1], one-dimensional.
        action_space: float32 Box in [-1, 1], one-dimensional; in a walk's discrete variant Discrete or MultiDiscrete.
    """

    steps: int
    observation_space: spaces.Space[Observation]
    action_space: spaces.Space[Any]

    @abstractmethod
    def reset(self) -> Observation:
        """Start over; returns what the agent sees at the first step."""

    @abstractmethod
    def step(self, action: Action) -> tuple[Observation, bool]:
        """Decide on one layer.

        Returns:
            What the agent sees next (at the end, the last layer once more), and whether the walk has ended.
        """

    @abstractmethod
    def taken(self) -> Action:
        """The action that the last step came to, after bounding and rounding."""

    def revised(self) -> "Revision | None":
        """What a finished walk came to, where its end changed earlier steps; None where each came to what it took."""
        return None

    @abstractmethod
    def policy(self) -> CompressionPolicy:
        """What a finished walk decided."""


class LayerwiseEnv(gymnasium.Env[Observation, Action]):
    """A walk as a Gymnasium environment: reward 0 until the last layer, then that of the policy's evaluation.

    Every step's info holds "taken", the action after bounding and rounding; the last one's also "policy",
    "evaluation", "cost" and, where the end of the episode changed earlier steps, "revised".

    Args:
        walk: leads through the layers.
        evaluator: says what a policy is worth.
        reward: makes a number of it.
    """

    def __init__(self, walk: LayerwiseWalk, evaluator: Evaluator, reward: Reward) -> None:
        self.walk = walk
        self.observation_space = walk.observation_space
        self.action_space = walk.action_space
        self._evaluator = evaluator
        self._reward = reward
        self._begun: Callable[[], Step] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; nothing in it is random."""
        super().reset(seed=seed)
        self._begun = None
        return self.walk.reset(), {}

    def step(self, action: Action) -> Step:
        """Decide on one layer; the last decision has the policy evaluated."""
        if self._begun is None:
            self.begin(action)
        outcome, self._begun = self._begun, None
        return outcome()  # type: ignore[misc]  # `begin` has set it

    def begin(self, action: Action) -> None:
        """Decide on one layer without waiting for an evaluation elsewhere: that is left to the call of `step`."""
        observation, done = self.walk.step(action)
        info: dict[str, Any] = {"taken": self.walk.taken()}
        if not done:
            self._begun = lambda: (observation, 0.0, False, False, info)
            return
        info["policy"] = policy = self.walk.policy()
        if (revised := self.walk.revised()) is not None:
            info["revised"] = revised
        judge = self._evaluator
        result = judge.submit(policy) if isinstance(judge, DistantEvaluator) else partial(judge, policy)

        def ended() -> Step:
            evaluation = result()
            found = {**info, "evaluation": evaluation, "cost": dict(evaluation.cost)}
            return observation, float(self._reward(evaluation)), True, False, found

        self._begun = ended


def scalar(action: Action) -> float:
    """The one number of an action, clipped to [-1, 1].

    Raises:
        InputError: not one finite number.
    """
    values = np.asarray(action, dtype=np.float64).reshape(-1)
    if values.size != 1 or not np.isfinite(values[0]):
        raise InputError(f"an action is one finite number in [-1, 1], got {action!r}")
    return min(max(float(values[0]), -1.0), 1.0)


def whole_number(action: Action | int, count: int) -> int:
    """The number of a discrete action.

    Raises:
        InputError: not one whole number from 0 to `count` - 1.
    """
    number = np.asarray(action)
    if number.size != 1 or number.dtype.kind not in "iu" or not 0 <= number.item() < count:
        raise InputError(f"an action is a whole number from 0 to {count - 1}, got {action!r}")
    return int(number.item())
