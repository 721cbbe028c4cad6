"""Who evaluates what: one actor that owns a run's store and hands proposals to the evaluators."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from automl.errors import TrimtabError
from automl.orchestration.metrics import SearchMeters
from automl.orchestration.pool import Evaluator, EvaluatorPool, ray_get
from automl.orchestration.search_loop import FAILURES_IN_A_ROW
from automl.run.directory import write_atomically
from automl.run.store import EvaluationRow, SearchRow, Store
from search_spaces.objective import Constraint, Evaluation
from search_spaces.policy import CompressionPolicy


@dataclass
class SearchProgress:
    """How far a search is.

    Attributes:
        name: of the search.
        total: evaluations it makes at most.
        done: evaluations on record, one on a part of the images as such a part.
        evaluations: the same, each counted as one.
        whole, feasible: those of them on all images that did not fail, and those of these within all budgets.
        failures: those of them that failed.
        best_accuracy, best_costs: of its best feasible policy so far, the costs by metric; None while it has none.
        last_costs: of the last policy of this session.
        best_reward: the highest reward so far.
        finished: whether it has ended.
        error: why it ended early.
    """

    name: str
    total: int
    done: float = 0.0
    evaluations: int = 0
    whole: int = 0
    feasible: int = 0
    failures: int = 0
    best_accuracy: float | None = None
    best_costs: Mapping[str, float] = field(default_factory=dict)
    last_costs: Mapping[str, float] = field(default_factory=dict)
    best_reward: float | None = None
    finished: bool = False
    error: str | None = None

    def count(self, evaluation: Evaluation) -> None:
        """Take in one more evaluation."""
        self.done += evaluation.share
        self.evaluations += 1
        self.whole += evaluation.error is None and evaluation.share == 1.0
        self.feasible += evaluation.feasible
        self.failures += evaluation.error is not None
        self.last_costs = evaluation.cost
        if evaluation.feasible and (self.best_accuracy is None or evaluation.accuracy > self.best_accuracy):
            self.best_accuracy = evaluation.accuracy
            self.best_costs = evaluation.cost

    def count_reward(self, reward: float) -> None:
        """Take in one more reward."""
        self.best_reward = reward if self.best_reward is None else max(self.best_reward, reward)


class DispatcherActor:
    """Hands proposals to idle evaluators, and commits what they find before anyone is told.

    Args:
        store: the run's SQLite file; this actor is its only writer.
        snapshots: directory of the searchers' snapshots.
        searches: the searches of the run.
        constraints: the budgets, that of progress first.
    """

    def __init__(
        self,
        store: Path,
        snapshots: Path,
        searches: list[SearchRow],
        constraints: Sequence[Constraint],
    ) -> None:
        self._store = Store(store)
        self._store.add_searches(searches)
        self._snapshots = snapshots
        self._pool = EvaluatorPool(constraints)
        self._constraints = constraints
        self._meters = SearchMeters(store.resolve().parent.name, constraints)
        for row in self._store.searches():
            self._store.forget_failures(row.name, min(FAILURES_IN_A_ROW, row.evaluations))
        self._progress = {
            each["name"]: SearchProgress(
                name=each["name"],
                total=each["evaluations"],
                done=each["done"],
                evaluations=each["count"],
                whole=each["whole"],
                feasible=each["feasible"],
                failures=each["failures"],
                best_accuracy=each["best_accuracy"],
                best_costs=self._store.costs_of_best(each["name"]),
                best_reward=each["best_reward"],
                finished=each["finished"],
            )
            for each in self._store.overview()
        }

    async def unfinished(self) -> list[SearchRow]:
        """The searches that have not ended."""
        return [row for row in self._store.searches() if not row.finished]

    async def snapshot(self, search: str) -> bytes | None:
        """What the search last saved; None where it has saved nothing."""
        try:
            return self._file(search).read_bytes()
        except FileNotFoundError:
            return None

    async def evaluate(
        self, search: str, number: int, policy: CompressionPolicy, cost: Mapping[str, float], share: float = 1.0
    ) -> Evaluation:
        """The policy's evaluation: from the store, or from an evaluator and then the store.

        What another proposal of the run, of whatever search, was found to be worth is not found out again; the seconds
        and images are those of then.

        Args:
            search, number: which proposal it is.
            policy: what to evaluate.
            cost: of the policy, by metric: who proposes has priced it.
            share: of the validation images.

        Raises:
            RunStoppedError: the run is to stop.
            TrimtabError: the store holds another policy under that number, or cannot be written.
        """
        stored = self._store.find(search, number)
        if stored is not None:
            if stored.policy.digest != policy.digest or stored.evaluation.share != share:
                raise TrimtabError(
                    f"proposal {number} of search {search!r} differs from the one on record: the config, the code or "
                    "the libraries changed since; start a new run"
                )
            return stored.evaluation
        twin = self._store.twin(policy.digest, share)
        if twin is not None:
            evaluation = twin.evaluation
        else:
            evaluation = await self._pool.evaluate(policy, cost, share)
            await asyncio.sleep(0)  # the evaluator gets its next policy before this one's commit keeps the process busy
        self._store.add(EvaluationRow(search, number, policy, evaluation))
        self._progress[search].count(evaluation)
        return evaluation

    async def save(
        self,
        search: str,
        rewards: Mapping[int, float],
        snapshot: bytes | None,
        thinking_s: Mapping[int, float] | None = None,
    ) -> None:
        """Record rewards and the searcher's own seconds, then replace the snapshot where there is a new one."""
        if thinking_s:
            self._store.set_thinking(search, thinking_s)
        if rewards:
            self._store.set_rewards(search, rewards)
            for reward in rewards.values():
                self._progress[search].count_reward(reward)
        if snapshot is not None:
            self._snapshots.mkdir(exist_ok=True)
            await asyncio.to_thread(write_atomically, self._file(search), snapshot)  # others are served meanwhile

    async def finish(self, search: str, error: str | None = None) -> None:
        """The search has ended."""
        self._store.finish(search, error)
        self._progress[search].finished = True
        self._progress[search].error = error

    async def give_up(self, search: str, error: str) -> None:
        """The search cannot go on now, and is not over: a resumed run tries again."""
        self._progress[search].error = error

    async def progress(self) -> list[SearchProgress]:
        """How far every search is; the metrics are set to it, so that they cost an evaluation nothing."""
        self._meters.show(self._progress.values(), self._pool.up)
        return list(self._progress.values())

    async def exchange(self, up: Sequence[Evaluator]) -> list[Evaluator]:
        """See `EvaluatorPool`."""
        return await self._pool.exchange(up)

    async def fail(self, reason: str) -> None:
        """See `EvaluatorPool`."""
        await self._pool.fail(reason)

    async def stop(self) -> None:
        """Stop the evaluators, and answer what is or will be asked with `RunStoppedError`."""
        await self._pool.stop()

    async def close(self) -> None:
        """Let go of the store."""
        self._store.close()

    def _file(self, search: str) -> Path:
        return self._snapshots / f"{search}.safetensors"


class RemoteEvaluators:
    """A search's view of the dispatcher; see `automl.orchestration.search_loop.Evaluators`.

    Args:
        dispatcher: handle of the run's `DispatcherActor`.
        search: name of the search.
        price: what a policy costs, by metric.
    """

    def __init__(self, dispatcher: Any, search: str, price: Callable[[CompressionPolicy], Mapping[str, float]]) -> None:
        self._dispatcher = dispatcher
        self._search = search
        self._price = price
        self._waiting: dict[int, Any] = {}
        self._thinking_s: dict[int, float] = {}

    def submit(self, number: int, policy: CompressionPolicy, share: float) -> None:
        """Have a proposal evaluated."""
        cost = dict(self._price(policy))
        self._waiting[number] = self._dispatcher.evaluate.remote(self._search, number, policy, cost, share)

    def result(self, number: int) -> Evaluation:
        """Wait for a proposal's evaluation."""
        evaluation: Evaluation = ray_get(self._waiting[number])
        del self._waiting[number]
        return evaluation

    def thought(self, seconds: Mapping[int, float]) -> None:
        """Put what the searcher itself took on record with the next `save`."""
        self._thinking_s.update(seconds)

    def save(self, rewards: Mapping[int, float], snapshot: bytes | None) -> None:
        """Put rewards and a snapshot on record."""
        ray_get(self._dispatcher.save.remote(self._search, dict(rewards), snapshot, self._thinking_s))
        self._thinking_s = {}
