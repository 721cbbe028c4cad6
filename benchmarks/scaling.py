"""How many evaluators the engine keeps busy, and how long a search it bears.

    python benchmarks/scaling.py [actors] [memory] [store]

Actors: a random search of the real dispatcher, store and loop, with evaluators that sleep 0.2 s on average, all the
same or lognormal (sigma 0.5), and a lag of four times their number. Efficiency is what they slept over what they could
have; "engine" is what an evaluation takes beyond an engine that costs nothing, and waits only where the lag says so.

Memory: of the processes of a random search of 100,000 evaluations that take no time.

Store: one of a million evaluations of a random search: seconds until it is open, its front is listed, and the search
goes on after its driver was killed.
"""

import argparse
import asyncio
import heapq
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray

from automl.costs.pricing import price
from automl.orchestration.dispatcher import DispatcherActor, RemoteEvaluators
from automl.orchestration.pool import Evaluator, ray_get
from automl.orchestration.ray_session import ray_session
from automl.orchestration.search_loop import run_search
from automl.run.store import EvaluationRow, SearchRow, Store
from automl.searchers import make_searcher
from automl.searchers.base import Searcher
from automl.testing.points import small_space
from search_spaces.objective import Constraint, Evaluation
from search_spaces.policy import CompressionPolicy

SPACE, PRICES = small_space()
BUDGET = Constraint("weight_bytes", 0.15 * SPACE.graph.weight_bytes)
SIGMA = 0.5


class Sleeper:
    """An evaluator that sleeps.

    Args:
        mean_s, sigma: of the lognormal seconds.
        seed: of theirs.
    """

    def __init__(self, mean_s: float, sigma: float, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._scale, self._sigma = mean_s * np.exp(-(sigma**2) / 2), sigma

    def ready(self) -> None:
        """Answer when there is one."""

    def evaluate(self, policy: CompressionPolicy, cost: Mapping[str, float], share: float) -> Evaluation:
        start = time.perf_counter()
        if self._scale:
            time.sleep(self._scale * self._rng.lognormal(sigma=self._sigma))
        return Evaluation(made_up_accuracy(policy), cost, 0.0, time.perf_counter() - start)


def made_up_accuracy(policy: CompressionPolicy) -> float:
    return int(policy.digest[:12], 16) / 16**12


class Timed(RemoteEvaluators):
    """Notes how long each evaluation took."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.seconds: list[float] = []
        self.watch: Callable[[int], None] = lambda _: None

    def result(self, number: int) -> Evaluation:
        found = super().result(number)
        self.seconds.append(found.seconds)
        self.watch(number + 1)
        return found


def members(sleepers: Sequence[Any]) -> list[Evaluator]:
    """What a dispatcher is told of evaluators that are up."""
    return [Evaluator(number, "", sleeper) for number, sleeper in enumerate(sleepers)]


@dataclass(frozen=True)
class Engine:
    """Everything but the search: dispatcher, store and evaluators."""

    folder: Path
    count: int
    dispatcher: Any
    evaluators: Timed
    sleepers: Sequence[Any]

    @classmethod
    @contextmanager
    def started(cls, actors: int, count: int, mean_s: float, sigma: float) -> "Iterator[Engine]":
        row = SearchRow("random-0", "random", 0, count)
        sleepers = [remote(Sleeper).remote(mean_s, sigma, seed) for seed in range(actors)]
        with tempfile.TemporaryDirectory() as folder:
            arguments = (Path(folder) / "trials.sqlite", Path(folder), [row], [BUDGET])
            dispatcher = remote(DispatcherActor, max_concurrency=10_000).remote(*arguments)
            ray_get([sleeper.ready.remote() for sleeper in sleepers] + [dispatcher.unfinished.remote()])
            ray_get(dispatcher.exchange.remote(members(sleepers)))
            try:
                evaluators = Timed(dispatcher, row.name, lambda policy: price(SPACE.graph, policy))
                yield cls(Path(folder), count, dispatcher, evaluators, sleepers)
                ray_get(dispatcher.close.remote())
            finally:
                for actor in (*sleepers, dispatcher):
                    ray.kill(actor)

    def sleeping(self) -> list[int]:
        """Process numbers of the evaluators."""
        pids: list[int] = ray_get([each.__ray_call__.remote(lambda _: os.getpid()) for each in self.sleepers])
        return pids

    def search(self, lag: int) -> float:
        """Seconds of the whole search."""
        start = time.perf_counter()
        run_search(random_search(self.count), self.evaluators, evaluations=self.count, lag=lag)
        return time.perf_counter() - start


def remote(kind: type, **options: Any) -> Any:
    return ray.remote(kind).options(num_cpus=0, **options)  # sleeping takes none


def random_search(evaluations: int) -> Searcher:
    return make_searcher("random", space=SPACE, constraint=BUDGET, seed=0, evaluations=evaluations, prices=PRICES)


class Caller:
    """An actor that does nothing but have evaluators evaluate one policy."""

    async def call(self, sleepers: Sequence[Any], each: int, policy: CompressionPolicy) -> float:
        """Seconds that each of this many evaluations took beyond what an evaluator slept, on average."""
        cost = price(SPACE.graph, policy)

        async def beyond(sleeper: Any) -> float:
            start = time.perf_counter()
            slept = sum([(await sleeper.evaluate.remote(policy, cost, 1.0)).seconds for _ in range(each)])
            return time.perf_counter() - start - slept

        total: float = np.mean(await asyncio.gather(*map(beyond, sleepers))).item()
        return total / each


# -- actors ------------------------------------------------------------------------------------------------------------


def actors(numbers: Sequence[int], mean_s: float, each: int) -> None:
    titles = ["evaluators", "seconds of an evaluation", "efficiency", "engine, ms an evaluation", "Ray alone, ms"]
    print(f"\n| {' | '.join(titles)} | waiting by the lag |\n|---|---|---|---|---|---|")
    with ray_session(1):
        for number in numbers:
            for sigma in (0.0, SIGMA):
                with Engine.started(number, max(4, number) * each, mean_s, sigma) as engine:
                    wall = engine.search(4 * number)
                    largest = SPACE.decode(SPACE.counts - 1)
                    alone: float = ray_get(remote(Caller).remote().call.remote(engine.sleepers, each, largest))
                seconds = engine.evaluators.seconds
                least = ideal(seconds, number, 4 * number)
                cells = [
                    str(number),
                    f"{mean_s}" if not sigma else f"{mean_s}, lognormal",
                    f"{sum(seconds) / number / wall:.1%}",
                    f"{1e3 * (wall - least) * number / len(seconds):.1f}",
                    f"{1e3 * alone:.1f}",
                    f"{(least - sum(seconds) / number) / wall:.1%}",
                ]
                print(f"| {' | '.join(cells)} |", flush=True)


def ideal(seconds: Sequence[float], evaluators: int, lag: int) -> float:
    """When the last of these evaluations ends, where asking, handing out and telling take no time."""
    free, now = [0.0] * evaluators, 0.0
    finish: list[float] = []
    for told in range(len(seconds)):
        while len(finish) < len(seconds) and len(finish) - told <= lag:
            finish.append(max(now, heapq.heappop(free)) + seconds[len(finish)])
            heapq.heappush(free, finish[-1])
        now = max(now, finish[told])
    return max(finish)


# -- memory ------------------------------------------------------------------------------------------------------------


def memory(count: int) -> None:
    print(f"\n{count:,} evaluations that take no time; resident MiB\n")
    print("| evaluations | search | dispatcher | evaluations a second |\n|---|---|---|---|")
    with ray_session(1), Engine.started(2, count, 0.0, 0.0) as engine:
        dispatcher = psutil.Process(ray_get(engine.dispatcher.__ray_call__.remote(lambda _: os.getpid())))
        last = [0, time.perf_counter()]

        def watch(done: int) -> None:
            if done % (count // 10) == 0:
                sizes = [process.memory_info().rss / 2**20 for process in (psutil.Process(), dispatcher)]
                rate = (done - last[0]) / (time.perf_counter() - last[1])
                last[:] = [done, time.perf_counter()]
                print(f"| {done:,} | {sizes[0]:.0f} | {sizes[1]:.0f} | {rate:.0f} |", flush=True)

        engine.evaluators.watch = watch
        engine.search(8)


# -- the store ---------------------------------------------------------------------------------------------------------


class Written:
    """Evaluators that find everything at once, and commit in large transactions: to fill a store."""

    BATCH = 10_000

    def __init__(self, store: Store, name: str, file: Path, stop_at: int) -> None:
        self._store, self._name, self._file, self._stop_at = store, name, file, stop_at
        self._waiting: dict[int, CompressionPolicy] = {}
        self._rows: list[EvaluationRow] = []
        self.done = 0

    def submit(self, number: int, policy: CompressionPolicy, share: float) -> None:
        self._waiting[number] = policy

    def result(self, number: int) -> Evaluation:
        if self.done == self._stop_at:
            raise KilledError
        policy = self._waiting.pop(number)
        found = Evaluation(made_up_accuracy(policy), price(SPACE.graph, policy), 0.0, 0.0)
        self._rows.append(EvaluationRow(self._name, number, policy, found, found.accuracy))
        self.done += 1
        if len(self._rows) == self.BATCH or self.done == self._stop_at:
            self._store.add_all(self._rows)
            self._rows.clear()
        return found

    def save(self, rewards: Mapping[int, float], snapshot: bytes | None) -> None:
        if snapshot is not None:
            self._file.write_bytes(snapshot)


class KilledError(Exception):
    """As a driver is."""


def store(count: int) -> None:
    row = SearchRow("random-0", "random", 0, 2 * count)
    with tempfile.TemporaryDirectory() as folder:
        file, snapshot = Path(folder) / "trials.sqlite", Path(folder) / f"{row.name}.safetensors"
        with closing(Store(file)) as written:
            written.add_searches([row])
            evaluators = Written(written, row.name, snapshot, count)
            with suppress(KilledError):
                run_search(random_search(2 * count), evaluators, evaluations=2 * count, lag=8)
        mebibytes = [each.stat().st_size / 2**20 for each in (file, snapshot)]
        print(f"\n{count:,} evaluations: store {mebibytes[0]:,.0f} MiB, snapshot {mebibytes[1]:,.1f} MiB\n")
        print("| | seconds |\n|---|---|")
        with seconds("opened, and how far each search is"), closing(Store.read(file)) as read:
            read.overview()
        with seconds("its front"), closing(Store.read(file)) as read:
            front = read.front(BUDGET.metric)
        with seconds("all figures"), closing(Store.read(file)) as read:
            found = sum(1 for _ in read.figures())
        assert found == count
        with ray_session(1), seconds("the search resumed, to its next new evaluation"):
            sleepers = [remote(Sleeper).remote(0.0, 0.0, 0)]
            arguments = (file, Path(folder), [row], [BUDGET])
            dispatcher = remote(DispatcherActor, max_concurrency=10_000).remote(*arguments)
            ray_get(dispatcher.exchange.remote(members(sleepers)))
            timed = Timed(dispatcher, row.name, lambda policy: price(SPACE.graph, policy))

            def watch(told: int) -> None:
                if told > count:
                    raise KilledError

            timed.watch = watch
            with suppress(KilledError):
                saved = ray_get(dispatcher.snapshot.remote(row.name))
                run_search(random_search(2 * count), timed, evaluations=2 * count, lag=8, snapshot=saved)
        print(f"\nThe front has {len(front)} policies.")


@contextmanager
def seconds(what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    print(f"| {what} | {time.perf_counter() - start:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="actors, memory, store; all where none is named")
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 8, 32, 64])
    parser.add_argument("--each", type=int, default=50, help="evaluations of an evaluator")
    parser.add_argument("--mean", type=float, default=0.2, help="seconds of an evaluation")
    parser.add_argument("--long", type=int, default=100_000, help="evaluations of the long search")
    parser.add_argument("--stored", type=int, default=1_000_000, help="evaluations of the large store")
    arguments = parser.parse_args()
    what = arguments.what or ["actors", "memory", "store"]
    if "actors" in what:
        actors(arguments.actors, arguments.mean, arguments.each)
    if "memory" in what:
        memory(arguments.long)
    if "store" in what:
        store(arguments.stored)


if __name__ == "__main__":
    main()
