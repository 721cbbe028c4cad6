"""The dispatcher as a Ray actor, with evaluators that die."""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray

from automl.costs.pricing import price
from automl.errors import RunStoppedError, TrimtabError
from automl.orchestration.crew import Crew, serving
from automl.orchestration.dispatcher import DispatcherActor, RemoteEvaluators
from automl.orchestration.placement import this_node
from automl.orchestration.pool import ray_get
from automl.orchestration.ray_session import ray_session
from automl.run.store import EvaluationRow, SearchRow, Store
from automl.testing.problems import AdditiveEvaluator, conv_chain
from search_spaces.objective import Constraint, Evaluation
from search_spaces.policy import CompressionPolicy

GRAPH = conv_chain((16, 32), size=16)
BUDGET = Constraint("macs", 0.5 * GRAPH.macs)
POLICIES = [GRAPH.policy((4 + number, 8)) for number in range(12)]  # the last one is for stopping
DEADLY, SLOW = 5, 11
SEARCH = SearchRow("random-0", "random", 0, len(POLICIES))


class Frail:
    """An evaluator whose process dies of one policy, for ever or the first time only."""

    def __init__(self, mark: Path | None = None, broken: bool = False) -> None:
        if broken:
            raise TrimtabError("no weights")
        time.sleep(1.0)  # a real one takes seconds to start: long enough for calls to meet it while it does
        self.mark = mark
        self.evaluate_well = AdditiveEvaluator(GRAPH, BUDGET)

    def ready(self) -> str:
        return this_node()

    def evaluate(self, policy: CompressionPolicy, cost: Mapping[str, float], share: float) -> Evaluation:
        if policy.digest == POLICIES[DEADLY].digest and not (self.mark and self.mark.exists()):
            if self.mark:
                self.mark.touch()
            os._exit(1)
        time.sleep(60.0 if policy.digest == POLICIES[SLOW].digest else 0.02)
        return self.evaluate_well(policy)


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    module = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(module)  # Ray's workers cannot import a test module
    with ray_session(2):
        yield
    ray.cloudpickle.unregister_pickle_by_value(module)


class Fixture:
    """A dispatcher with two evaluators."""

    def __init__(self, folder: Path, **evaluator: Any) -> None:
        self.file = folder / "trials.sqlite"
        remote: Any = ray.remote(Frail)
        self.crew = Crew(lambda name, options: remote.options(name=name, **options).remote(**evaluator), 2, {"CPU": 1})
        actor: Any = ray.remote(DispatcherActor)
        self.dispatcher = actor.options(num_cpus=0).remote(self.file, folder / "searchers", [SEARCH], [BUDGET])
        self.serving = serving(self.crew, self.dispatcher)
        self.serving.__enter__()
        self.remote = RemoteEvaluators(self.dispatcher, SEARCH.name, lambda policy: price(GRAPH, policy))

    def evaluate_all(self) -> list[Evaluation]:
        for number, policy in enumerate(POLICIES[:SLOW]):
            self.remote.submit(number, policy, 1.0)
        return [self.remote.result(number) for number in range(SLOW)]

    def close(self) -> list[EvaluationRow]:
        ray_get(self.dispatcher.close.remote())
        self.serving.__exit__(None, None, None)
        self.crew.close()
        ray.kill(self.dispatcher)
        store = Store.read(self.file)
        rows = list(store.evaluations())
        store.close()
        return rows


def test_an_evaluation_whose_process_dies_once_is_done_again(tmp_path: Path) -> None:
    fixture = Fixture(tmp_path, mark=tmp_path / "died")
    found = fixture.evaluate_all()
    assert (tmp_path / "died").exists()
    assert [item.error for item in found] == [None] * SLOW
    assert [row.evaluation.accuracy for row in fixture.close()] == [item.accuracy for item in found]


def test_an_evaluation_whose_process_dies_again_is_recorded_as_failed(tmp_path: Path) -> None:
    fixture = Fixture(tmp_path)
    found = fixture.evaluate_all()
    failed = [number for number, item in enumerate(found) if item.error is not None]
    assert failed == [DEADLY]
    assert "died of it" in str(found[DEADLY].error)
    assert found[DEADLY].cost["macs"] == GRAPH.apply(POLICIES[DEADLY]).macs
    assert [row.number for row in fixture.close()] == list(range(SLOW))


def test_what_is_on_record_is_not_evaluated_again_and_another_policy_is_refused(tmp_path: Path) -> None:
    fixture = Fixture(tmp_path)
    known = Evaluation(0.125, {"macs": 1.0}, 0.0, 0.0)
    fixture.close()
    store = Store(fixture.file)
    store.add(EvaluationRow(SEARCH.name, 0, POLICIES[0], known))
    store.close()
    fixture = Fixture(tmp_path)
    fixture.remote.submit(0, POLICIES[0], 1.0)
    assert fixture.remote.result(0) == known
    fixture.remote.submit(0, POLICIES[1], 1.0)
    with pytest.raises(TrimtabError, match="differs from the one on record"):
        fixture.remote.result(0)
    fixture.remote.submit(1, POLICIES[0], 1.0)  # found out before, if as another proposal
    assert fixture.remote.result(1) == known
    fixture.remote.submit(2, POLICIES[0], 0.5)
    assert fixture.remote.result(2).accuracy != known.accuracy
    assert [row.number for row in fixture.close()] == [0, 1, 2]


def test_evaluators_that_cannot_start_are_no_failed_evaluations(tmp_path: Path) -> None:
    fixture = Fixture(tmp_path, broken=True)
    fixture.remote.submit(0, POLICIES[0], 1.0)
    with pytest.raises(TrimtabError, match=r"an evaluator cannot start: .*no weights"):
        fixture.remote.result(0)
    assert fixture.close() == []


def test_stopping_answers_what_is_waiting_and_records_nothing_false(tmp_path: Path) -> None:
    fixture = Fixture(tmp_path)
    for number in (0, SLOW, 1):
        fixture.remote.submit(number, POLICIES[number], 1.0)
    fixture.remote.result(0)
    fixture.remote.result(1)
    ray_get(fixture.dispatcher.stop.remote())
    with pytest.raises(RunStoppedError):
        fixture.remote.result(SLOW)
    assert [row.number for row in fixture.close()] == [0, 1]


def test_a_search_that_gives_up_is_not_over(tmp_path: Path) -> None:
    fixture = Fixture(tmp_path)
    ray_get(fixture.dispatcher.give_up.remote(SEARCH.name, "operator conv2d is refused"))
    progress = ray_get(fixture.dispatcher.progress.remote())[0]
    assert (progress.finished, progress.error) == (False, "operator conv2d is refused")
    assert ray_get(fixture.dispatcher.unfinished.remote()) == [SEARCH]
    fixture.close()


def test_snapshots_and_rewards_are_kept(tmp_path: Path) -> None:
    fixture = Fixture(tmp_path)
    fixture.remote.submit(0, POLICIES[0], 1.0)
    fixture.remote.result(0)
    assert ray_get(fixture.dispatcher.snapshot.remote(SEARCH.name)) is None
    fixture.remote.save({0: 0.5}, b"state")
    fixture.remote.save({}, None)
    assert ray_get(fixture.dispatcher.snapshot.remote(SEARCH.name)) == b"state"
    progress = ray_get(fixture.dispatcher.progress.remote())[0]
    assert (progress.done, progress.best_reward) == (1, 0.5)
    assert fixture.close()[0].reward == 0.5
