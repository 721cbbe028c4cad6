"""Evaluators that many ask: a policy goes to one that is idle, and what its process dies of is tried once more."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError

from automl.errors import InputError, RunStoppedError, TrimtabError
from automl.orchestration.placement import node_lives
from search_spaces.objective import Constraint, Evaluation, violation
from search_spaces.policy import CompressionPolicy

ATTEMPTS = 2
"""What a worker dies of is tried this often before it counts as failed."""

POLL_S = 0.25
"""Between two looks at what goes on elsewhere."""

AGAIN_S = 1.0
"""Until one who is out of reach is asked again."""


@dataclass(frozen=True)
class Evaluator:
    """An evaluator that is up.

    Attributes:
        number: of the process; one that takes another's place has a number of its own.
        node: that it runs on.
        handle: of the actor, a `automl.orchestration.worker.Worker`.
    """

    number: int
    node: str
    handle: Any = field(compare=False)


class EvaluatorPool:
    """Hands policies to idle evaluators; part of an actor, or one itself.

    Args:
        constraints: the budgets.
    """

    def __init__(self, constraints: Sequence[Constraint]) -> None:
        self._constraints = constraints
        self._idle: asyncio.Queue[Evaluator | None] = asyncio.Queue()
        self._members: set[Evaluator] = set()
        self._dead: list[Evaluator] = []
        self._losses = 0
        self._failure: TrimtabError | None = None

    @property
    def up(self) -> int:
        """Number of evaluators that have not died."""
        return 0 if self._failure is not None else len(self._members) - self._losses

    async def evaluate(self, policy: CompressionPolicy, cost: Mapping[str, float], share: float = 1.0) -> Evaluation:
        """The policy's evaluation by the first evaluator that is idle.

        Args:
            policy: what to evaluate.
            cost: of the policy, by metric: who proposes has priced it.
            share: of the validation images.

        Raises:
            RunStoppedError: the pool was stopped.
            TrimtabError: there are no evaluators any more, and why.
        """
        deaths = 0
        while deaths < ATTEMPTS:
            evaluator = await self._next()
            try:
                evaluation: Evaluation = await evaluator.handle.evaluate.remote(policy, cost, share)
            except RayActorError:
                deaths += await self._process_died(evaluator)
            except BaseException:
                self._idle.put_nowait(evaluator)
                raise
            else:
                self._idle.put_nowait(evaluator)
                return evaluation
        reason = f"the evaluator's process died of it, {ATTEMPTS} times"
        return Evaluation(0.0, cost, violation(cost, self._constraints), 0.0, reason, share=share)

    async def exchange(self, up: Sequence[Evaluator]) -> list[Evaluator]:
        """Take in the evaluators that are new; returns those that died since the last time."""
        if self._failure is not None:
            return []
        for evaluator in up:
            if evaluator not in self._members:
                self._members.add(evaluator)
                self._idle.put_nowait(evaluator)
        dead, self._dead = self._dead, []
        return dead

    async def fail(self, reason: str) -> None:
        """There will be no evaluators any more: answer what is or will be asked with that."""
        self._end(TrimtabError(reason))

    async def stop(self) -> None:
        """Stop the evaluators, and answer what is or will be asked with `RunStoppedError`."""
        self._end(RunStoppedError("the run is stopping"))
        for evaluator in self._members:
            ray.kill(evaluator.handle)

    def _end(self, failure: TrimtabError) -> None:
        self._failure = failure
        self._idle.put_nowait(None)

    async def _next(self) -> Evaluator:
        evaluator = await self._idle.get()
        if self._failure is not None:
            self._idle.put_nowait(None)  # whoever else waits
            raise self._failure
        assert evaluator is not None
        return evaluator

    async def _process_died(self, evaluator: Evaluator) -> bool:
        """Whether the evaluator's process died while its node lives: then the policy may be why.

        The cluster's head knows of a node's death before anyone is told that an actor died with it.
        """
        while True:
            try:
                await evaluator.handle.ready.remote()
            except ActorUnavailableError:
                await asyncio.sleep(AGAIN_S)
            except RayActorError:
                break
            else:
                self._idle.put_nowait(evaluator)
                return False  # it was out of reach, and is not any more
        if self._failure is not None:  # it was stopped, too: this is no result
            raise self._failure
        self._dead.append(evaluator)
        self._losses += 1
        return await asyncio.to_thread(node_lives, evaluator.node)


def ray_get(reference: Any) -> Any:
    """`ray.get` that raises our own errors as what they are."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError | TrimtabError):
            raise error.cause from None
        raise


def last_line(error: BaseException) -> str:
    """The end of a message that Ray wrapped in a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
