"""Evaluators that many ask: a policy goes to one that is idle, and what its process dies of is tried once more."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError

from automl.errors import InputError, RunStoppedError, TrimtabError
from search_spaces.objective import Constraint, Evaluation, violation
from search_spaces.policy import CompressionPolicy

ATTEMPTS = 2
"""What a worker dies of is tried this often before it counts as failed."""


class EvaluatorPool:
    """Hands policies to idle evaluators; part of an actor, or one itself.

    Args:
        evaluators: handles of the evaluators (`automl.orchestration.worker.Worker`).
        constraints: the budgets.
    """

    def __init__(self, evaluators: Sequence[Any], constraints: Sequence[Constraint]) -> None:
        self._evaluators = evaluators
        self._constraints = constraints
        self._idle: asyncio.Queue[Any] | None = None
        self._reviving = 0
        self._stopping = False

    @property
    def up(self) -> int:
        """Number of evaluators that are not being started anew."""
        return 0 if self._stopping else len(self._evaluators) - self._reviving

    async def evaluate(self, policy: CompressionPolicy, cost: Mapping[str, float], share: float = 1.0) -> Evaluation:
        """The policy's evaluation by the first evaluator that is idle.

        Args:
            policy: what to evaluate.
            cost: of the policy, by metric: who proposes has priced it.
            share: of the validation images.

        Raises:
            RunStoppedError: the pool was stopped.
            TrimtabError: an evaluator cannot start.
        """
        if self._idle is None:
            self._idle = asyncio.Queue()
            for evaluator in self._evaluators:
                self._idle.put_nowait(evaluator)
        evaluator = await self._idle.get()
        try:
            if self._stopping:
                raise RunStoppedError("the run is stopping")
            return await self._attempt(evaluator, policy, cost, share)
        finally:
            self._idle.put_nowait(evaluator)

    async def stop(self) -> None:
        """Stop the evaluators, and answer what is or will be asked with `RunStoppedError`."""
        self._stopping = True
        for evaluator in self._evaluators:
            ray.kill(evaluator)

    async def _attempt(
        self, evaluator: Any, policy: CompressionPolicy, cost: Mapping[str, float], share: float
    ) -> Evaluation:
        for _ in range(ATTEMPTS):
            try:
                evaluation: Evaluation = await evaluator.evaluate.remote(policy, cost, share)
                return evaluation
            except RayActorError as error:
                await self._revived(evaluator, error)
        reason = f"the evaluator's process died of it, {ATTEMPTS} times"
        return Evaluation(0.0, cost, violation(cost, self._constraints), 0.0, reason, share=share)

    async def _revived(self, evaluator: Any, error: RayActorError) -> None:
        """Wait until Ray has started a dead evaluator anew."""
        self._reviving += 1
        try:
            if not error.actor_init_failed and not self._stopping:
                await when_ready(evaluator)
                return
        except RayActorError as second:
            error = second
        finally:
            self._reviving -= 1
        if self._stopping:  # it was stopped, too: this is no result
            raise RunStoppedError("the run is stopping") from None
        raise TrimtabError(f"an evaluator cannot start: {last_line(error)}") from None


def ray_get(reference: Any) -> Any:
    """`ray.get` that raises our own errors as what they are."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError | TrimtabError):
            raise error.cause from None
        raise


def when_ready(worker: Any) -> Any:
    """A reference that is there when the worker is up, be it in a new process.

    Other calls fail while a worker is being started anew, so that a policy it dies of is not tried for ever.
    """
    return worker.ready.options(max_task_retries=-1).remote()


def last_line(error: BaseException) -> str:
    """The end of a message that Ray wrapped in a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
