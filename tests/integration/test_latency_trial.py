"""A search under a latency budget, from trial to store, on made-up prices: refused operators, resuming, determinism."""

import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import latency_fakes
import pytest
import ray
from latency_fakes import ArithmeticTimer, LayerBackend, fake_prices

from automl.config import Config, load_config
from automl.orchestration import pool, trial
from automl.orchestration.dispatcher import DispatcherActor
from automl.orchestration.pool import ray_get
from automl.orchestration.price_actor import price_actor
from automl.orchestration.ray_session import ray_session
from automl.run.store import EvaluationRow, SearchRow, Store
from automl.testing.problems import AdditiveEvaluator, cifar_resnet
from search_spaces.channel_space import ChannelSpace
from search_spaces.objective import Constraint, Evaluation
from search_spaces.policy import CompressionPolicy
from search_spaces.space import SearchSpace

GRAPH = cifar_resnet(8)
SPACE = SearchSpace.of_channels(ChannelSpace.build(GRAPH))
TOTAL = 12
CONFIG = load_config(
    {
        "model": {"name": "resnet20"},
        "data": {"name": "digits"},
        "budget": {"metric": "latency_s", "ratio": 0.5},
        "search": {"algorithm": "ddpg", "evaluations": TOTAL, "lag": 2, "options": {"warmup": 4, "hidden": 24}},
    }
)


class Evaluator:
    """Accuracy by arithmetic; the cost is what it is told."""

    def __init__(self) -> None:
        self.additive = AdditiveEvaluator(GRAPH, Constraint("macs", GRAPH.macs))

    def ready(self) -> None:
        pass

    def evaluate(self, policy: CompressionPolicy, cost: Mapping[str, float], share: float) -> Evaluation:
        return Evaluation(self.additive(policy).accuracy, cost, 0.0, 0.0)


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    modules = (sys.modules[__name__], latency_fakes)
    for module in modules:
        ray.cloudpickle.register_pickle_by_value(module)  # Ray's workers cannot import a test module
    with ray_session(1):
        yield
    for module in modules:
        ray.cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture(autouse=True)
def by_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials run here, without Tune, and price by layers."""
    monkeypatch.setattr(trial, "priced_by_table", lambda measure, graph, prices: LayerBackend(graph, prices))
    monkeypatch.setattr(trial.tune, "report", lambda state: None)


def search(
    folder: Path, algorithm: str, timer: ArithmeticTimer, config: Config = CONFIG
) -> tuple[list[EvaluationRow], Any]:
    """One search, run or resumed in that folder: what is on record then, and how far it says it is."""
    folder.mkdir(exist_ok=True)
    row = SearchRow(f"{algorithm}-0", algorithm, 0, TOTAL)
    with fake_prices(folder / "limit.sqlite") as prices:
        constraint = Constraint("latency_s", 0.5 * LayerBackend(GRAPH, prices).price(GRAPH.kept))
    opened = partial(fake_prices, folder / "table.sqlite", timer)
    evaluator: Any = ray.remote(Evaluator)
    actor: Any = ray.remote(DispatcherActor)
    with price_actor(opened) as (prices, _):
        evaluators = [evaluator.options(num_cpus=0).remote()]
        dispatcher = actor.options(num_cpus=0).remote(
            folder / "trials.sqlite", folder / "searchers", [row], [constraint]
        )
        ray_get(dispatcher.exchange.remote([pool.Evaluator(n, "", each) for n, each in enumerate(evaluators)]))
        trial.run_trial(
            {"search": row.name},
            searches={row.name: row},
            config=config,
            space=SPACE,
            constraints=[constraint],
            dispatcher=dispatcher,
            prices=prices,
        )
        progress = ray_get(dispatcher.progress.remote())[0]
        ray_get(dispatcher.close.remote())
        for handle in (dispatcher, *evaluators):
            ray.kill(handle)
    store = Store.read(folder / "trials.sqlite")
    rows = list(store.evaluations())
    store.close()
    for found in rows:
        assert found.evaluation.cost["latency_s"] <= constraint.limit
    return rows, progress


def outcome(rows: list[EvaluationRow]) -> list[tuple[Any, ...]]:
    return [(row.number, row.policy.digest, row.reward, dict(row.evaluation.cost)) for row in rows]


def test_a_refused_operator_ends_the_search_which_a_resumed_run_takes_up(tmp_path: Path) -> None:
    algorithm = "random"
    whole, progress = search(tmp_path / "whole", algorithm, ArithmeticTimer())
    assert progress.finished
    assert len(whole) == TOTAL
    first_met = LayerBackend(GRAPH, None)  # type: ignore[arg-type]  # it prices nothing here
    known: set[str] = set()
    for row in whole:  # an operator that the search meets late
        new = {item.recipe for item in first_met.recipes(GRAPH.kept_units(row.policy))} - known
        known |= new
        late = next(iter(new), None) or late  # noqa: F821
    broken, progress = search(tmp_path / "broken", algorithm, ArithmeticTimer(refused=late))
    assert len(broken) < TOTAL
    assert not progress.finished
    assert f"operator {late} is refused" in progress.error
    assert "\n" not in progress.error
    for found in broken:
        expected = whole[found.number]
        assert found.policy.digest == expected.policy.digest
        assert found.evaluation.cost == expected.evaluation.cost
        assert found.reward in (None, expected.reward)  # it may have ended before the reward was given back
    mended, progress = search(tmp_path / "broken", algorithm, ArithmeticTimer())
    assert progress.finished
    assert outcome(mended) == outcome(whole)


def test_a_table_filled_ahead_changes_nothing(tmp_path: Path) -> None:
    whole, _ = search(tmp_path / "cold", "ddpg", ArithmeticTimer())
    (tmp_path / "warm").mkdir()
    (tmp_path / "cold" / "table.sqlite").rename(tmp_path / "warm" / "table.sqlite")
    timer = ArithmeticTimer(refused="(")  # nothing may be measured
    warm, _ = search(tmp_path / "warm", "ddpg", timer)
    assert outcome(warm) == outcome(whole)
