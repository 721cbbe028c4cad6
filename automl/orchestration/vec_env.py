"""Several environments of one problem for a loop of one's own: their policies are evaluated side by side, on Ray."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv

import envs  # noqa: F401  (registers the environments)
from automl.costs.pricing import price
from automl.environments import ENVIRONMENTS
from automl.orchestration.crew import evaluator_pool
from automl.orchestration.pool import ray_get
from automl.problem import Problem
from envs.layerwise import LayerwiseEnv
from search_spaces.objective import Evaluation
from search_spaces.policy import CompressionPolicy


class PooledVecEnv(DummyVecEnv):
    """Environments that step one after the other, and wait for their evaluations together.

    Args:
        makers: make one environment each.

    Attributes:
        resources: closed with it.
    """

    def __init__(self, makers: Sequence[Callable[[], LayerwiseEnv]]) -> None:
        super().__init__(list(makers))
        self.resources = ExitStack()

    def step_async(self, actions: np.ndarray[Any, Any]) -> None:
        """Have every environment decide; what ends is evaluated from now on."""
        super().step_async(actions)
        for env, action in zip(self.envs, actions, strict=True):
            env.begin(action)  # type: ignore[attr-defined]  # a LayerwiseEnv

    def close(self) -> None:
        """Close the environments, and stop their evaluators."""
        super().close()
        self.resources.close()


class PooledEvaluator:
    """An `Evaluator` whose work is done by a pool.

    Args:
        problem: prices policies.
        pool: handle of an `EvaluatorPool` actor.
    """

    def __init__(self, problem: Problem, pool: Any) -> None:
        self._problem = problem
        self._pool = pool

    def submit(self, policy: CompressionPolicy) -> Callable[[], Evaluation]:
        """See `DistantEvaluator`."""
        cost = price(self._problem.graph, policy, self._problem.backend)
        return partial(ray_get, self._pool.evaluate.remote(policy, cost))

    def __call__(self, policy: CompressionPolicy) -> Evaluation:
        """Evaluate, and wait for it."""
        return self.submit(policy)()


def pooled_vec_env(
    problem: Problem, name: str, count: int, options: Mapping[str, Any], baseline: Path, resources: ExitStack
) -> PooledVecEnv:
    """Environments of a problem, whose policies the config's evaluators judge; see `automl.make_vec_env`.

    Args:
        problem: with the trained baseline.
        name: of the environments.
        count: how many.
        options: that replace those of the config.
        baseline: file for the baseline's weights, which the evaluators read.
        resources: taken over, the evaluators among them, and closed with the environments.

    Raises:
        InputError: the options do not fit.
    """
    baseline.write_bytes(problem.saved())
    here = str(Path.cwd())
    pool = resources.enter_context(evaluator_pool(problem.config, baseline, here, problem.constraints))
    given = ENVIRONMENTS[name](problem, {"evaluator": PooledEvaluator(problem, pool), **options})

    def make() -> Any:
        return gymnasium.make(f"trimtab/{name}-v0", **given).unwrapped

    made = PooledVecEnv([make] * count)
    made.resources = resources.pop_all()
    return made
