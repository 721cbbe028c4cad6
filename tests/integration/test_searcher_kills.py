"""Every search algorithm, killed for real at random moments: what it leaves in the end is what it leaves undisturbed.

Each search has a process, forked from one that has imported everything, in which the loop and the dispatcher work as in
a run; only Ray is left out, and an evaluation is arithmetic. test_kills.py kills whole runs.
"""

import asyncio
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from automl.costs.pricing import price
from automl.orchestration.dispatcher import DispatcherActor
from automl.orchestration.pool import Evaluator
from automl.orchestration.search_loop import run_search
from automl.run.store import SearchRow
from automl.searchers import make_searcher, searcher_names
from automl.searchers.agent_options import AGENTS
from automl.searchers.base import Searcher
from automl.testing.points import AdditiveAccuracy, elastic_space, small_space
from search_spaces.objective import Constraint, Evaluation
from search_spaces.policy import CompressionPolicy
from search_spaces.space import SearchSpace

TOTAL = 24
FEWER = {"uniform": 1, "given": 2, "auto": 10, "gp": 14, "gradient": 14, "ddpg": 14, "td3": 14, "sac": 14}
SMALL_AGENT = {"hidden": 16, "batch": 8}
LAG = 3
NAMES = [name for name, _ in searcher_names()]
IMPORTED_ONCE = [
    "automl.orchestration.dispatcher",
    "automl.searchers.agents",
    "automl.testing.points",
    "optuna.samplers",
    "torch._dynamo",  # which torch's optimisers import when the first of them is made
]


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED_ONCE)
    return context


@pytest.mark.parametrize("name", NAMES)
def test_killed_and_resumed_with_another_number_of_evaluators_equals_uninterrupted(
    name: str, tmp_path: Path, processes: ForkServerContext
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    total = FEWER.get(name, TOTAL)

    def session(folder: Path, evaluators: int, kill_after: int | None = None) -> int | None:
        folder.mkdir(exist_ok=True)
        process = processes.Process(target=drive, args=(name, total, folder, evaluators, kill_after, chance.random()))
        process.start()
        process.join(60)
        return process.exitcode

    assert session(tmp_path / "whole", 3) == 0
    whole = record(tmp_path / "whole")
    assert whole[0][-2:] == (1, None)  # finished, without an error
    assert len(whole) > 1
    for evaluators in (1, 2):
        assert session(tmp_path / "killed", evaluators, chance.randrange(total)) == -signal.SIGKILL
    assert session(tmp_path / "killed", 1) == 0
    assert record(tmp_path / "killed") == whole, f"seed {seed}"


def record(folder: Path) -> list[tuple[Any, ...]]:
    """Everything that stands in a store, times aside."""
    with closing(sqlite3.connect(folder / "trials.sqlite")) as connection:
        return [
            *connection.execute("SELECT * FROM searches"),
            *connection.execute(
                "SELECT number, digest, accuracy, reward, cost, violation, share, error FROM evaluations ORDER BY 1"
            ),
        ]


def drive(name: str, total: int, folder: Path, evaluators: int, kill_after: int | None, chance: float) -> None:
    """A process: a search from where it was left to its end, or to a kill some evaluations later.

    Args:
        name: of the algorithm.
        total: evaluations of the search.
        folder: where its record is.
        evaluators: how many.
        kill_after: so many evaluations of this process.
        chance: how long after, as a share of the time that an evaluation takes.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    searcher, space, constraint = search(name, total)
    kill = _Kill(kill_after, chance)
    with ThreadPoolExecutor(evaluators) as threads:
        row = SearchRow(name, name, 0, total)
        near = [_Evaluator(threads, space, kill) for _ in range(evaluators)]
        dispatcher = DispatcherActor(folder / "trials.sqlite", folder, [row], [constraint])
        here = _Evaluators(dispatcher, name, space)
        here.wait(dispatcher.exchange([Evaluator(number, "", each) for number, each in enumerate(near)]))
        run_search(
            searcher, here, evaluations=total, lag=LAG, snapshot=here.wait(dispatcher.snapshot(name)), snapshot_every=5
        )
        here.wait(dispatcher.finish(name))
        if kill_after is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        here.wait(dispatcher.close())


def search(name: str, total: int) -> tuple[Searcher, SearchSpace, Constraint]:
    """The algorithm over channels and bits, or what it decides on instead."""
    gradient = name == "gradient"
    space, prices = elastic_space() if gradient else small_space()
    constraint = Constraint("weight_bytes", 0.15 * space.graph.weight_bytes)
    prior = [np.zeros(count) for count in space.counts] if gradient else None
    options: dict[str, Any] = {"policies": given()} if name == "given" else SMALL_AGENT if name in AGENTS else {}
    searcher = make_searcher(
        name, space=space, constraint=constraint, prices=prices, seed=1, evaluations=total, options=options, prior=prior
    )
    return searcher, space, constraint


@cache
def given() -> list[dict[str, Any]]:
    space, _ = small_space()
    return [json.loads(space.decode(point).to_json()) for point in (space.least, space.greatest)]


class _Kill:
    """Ends this process as the kernel does, some evaluations from now and then at some moment."""

    def __init__(self, after: int | None, share: float) -> None:
        self._left = after
        self._share = share
        self._lock = threading.Lock()

    def count(self) -> None:
        with self._lock:
            if self._left == 0:
                threading.Timer(self._share * LONGEST_S, os.kill, (os.getpid(), signal.SIGKILL)).start()
            if self._left is not None:
                self._left -= 1


LONGEST_S = 0.008


class _Evaluator:
    """An evaluator that is a thread, called as Ray's actors are; of some policies it fails."""

    def __init__(self, threads: ThreadPoolExecutor, space: SearchSpace, kill: _Kill) -> None:
        self._accuracy = AdditiveAccuracy(space)
        self._kill = kill
        self.evaluate = SimpleNamespace(
            remote=lambda *asked: asyncio.wrap_future(threads.submit(self._evaluate, *asked))
        )

    def _evaluate(self, policy: CompressionPolicy, cost: Mapping[str, float], share: float) -> Evaluation:
        self._kill.count()
        time.sleep(random.uniform(0.0, LONGEST_S))  # they end in no order
        if policy.digest[0] == "0":
            return Evaluation(
                0.0, cost, 0.0, 0.0, "FloatingPointError: the compressed network answers NaN or infinity", share=share
            )
        accuracy = self._accuracy(self._accuracy.space.encode(policy))
        return Evaluation(accuracy, cost, 0.0, 0.0, divergence=1.0 - accuracy, share=share)


class _Evaluators:
    """What a search sees of the dispatcher, which works in a thread."""

    def __init__(self, dispatcher: DispatcherActor, search: str, space: SearchSpace) -> None:
        self._dispatcher, self._search, self._space = dispatcher, search, space
        self._loop = asyncio.new_event_loop()
        self._waiting: dict[int, Future[Evaluation]] = {}
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def wait(self, answer: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(answer, self._loop).result()

    def submit(self, number: int, policy: CompressionPolicy, share: float) -> None:
        evaluation = self._dispatcher.evaluate(self._search, number, policy, price(self._space.graph, policy), share)
        self._waiting[number] = asyncio.run_coroutine_threadsafe(evaluation, self._loop)

    def result(self, number: int) -> Evaluation:
        return self._waiting.pop(number).result()

    def save(self, rewards: Mapping[int, float], snapshot: bytes | None) -> None:
        self.wait(self._dispatcher.save(self._search, dict(rewards), snapshot))
