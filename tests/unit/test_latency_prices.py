"""Prices of operators as processes of a run ask for them: each measured once, estimates never taken back."""

import json
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from latency_fakes import ArithmeticTimer, LayerBackend, fake_prices

from automl.costs.latency import EstimatedPrices, LocalPrices
from automl.costs.pricing import cost_of, price
from automl.costs.profile import recipes_of
from automl.errors import InputError
from automl.searchers import make_searcher
from automl.testing.problems import GraphBuilder, cifar_resnet, mobilenet_v1
from backends.counting import CountingBackend
from backends.operator_prices import OperatorPrices, RefusedOperatorError
from search_spaces.channel_space import ChannelSpace
from search_spaces.graph import ModelGraph
from search_spaces.objective import Constraint

GRAPH = cifar_resnet(8)
SPACE = ChannelSpace.build(GRAPH)


def test_each_operator_is_measured_once_and_the_table_outlives_the_process(tmp_path: Path) -> None:
    timer = ArithmeticTimer()
    told: list[tuple[int, int]] = []
    opened: list[bool] = []

    def open_table() -> AbstractContextManager[OperatorPrices]:
        opened.append(True)
        return fake_prices(tmp_path / "table.sqlite", timer)

    with LocalPrices(open_table, lambda done, total, left: told.append((done, total))) as prices:
        assert not opened  # nothing is opened before it is needed
        backend = LayerBackend(GRAPH, prices)
        first = backend.price(GRAPH.kept)
        distinct = len({recipe.recipe for recipe in backend.recipes(GRAPH.kept)})
        assert told == [(done + 1, distinct) for done in range(distinct)]
        assert backend.price(GRAPH.kept) == first
    again = LocalPrices(open_table)
    assert LayerBackend(GRAPH, again).price(GRAPH.kept) == first
    again.close()
    assert set(timer.measured.values()) == {1}
    assert len(opened) == 2


def test_a_search_keeps_a_latency_budget_and_records_the_latency(tmp_path: Path) -> None:
    with LocalPrices(lambda: fake_prices(tmp_path / "table.sqlite")) as prices:
        backend = LayerBackend(GRAPH, prices)
        budget = Constraint("latency_s", 0.5 * backend.price(GRAPH.kept))
        for name in ("ddpg", "random", "uniform"):
            searcher = make_searcher(
                name,
                space=SPACE,
                constraint=budget,
                seed=0,
                evaluations=4,
                cost=cost_of(GRAPH, backend, "latency_s"),
            )
            for _ in range(4):
                cost = price(GRAPH, searcher.ask(), backend)
                assert cost["latency_s"] <= budget.limit
                assert cost.keys() == {"macs", "params", "weight_bytes", "latency_s"}
        assert cost["latency_s"] > 0.9 * budget.limit  # the uniform policy is no straw man
    assert cost_of(GRAPH, CountingBackend(), "macs") is None


def test_estimates_stand_though_the_table_grows(tmp_path: Path) -> None:
    table, said = tmp_path / "table.sqlite", tmp_path / "estimates.json"
    timer = ArithmeticTimer()
    with fake_prices(table, timer) as prices:
        LayerBackend(GRAPH, prices).price(GRAPH.kept)
        LayerBackend(GRAPH, prices).price(SPACE.least)
        measured = dict(timer.measured)
        estimated = EstimatedPrices(prices, said)
        assert 0.0 < estimated.error < 0.1
        other = [group.width // 2 for group in GRAPH.groups]
        first = LayerBackend(GRAPH, estimated).price(other)
        assert dict(timer.measured) == measured  # nothing more was
        truth = LayerBackend(GRAPH, prices).price(other)  # now it was
        assert first != truth
        assert first == pytest.approx(truth, rel=0.1)
        assert LayerBackend(GRAPH, EstimatedPrices(prices, said)).price(other) == first
    texts = {recipe.recipe for recipe in LayerBackend(GRAPH, estimated).recipes(other)}
    assert set(json.loads(said.read_text())) == texts - set(measured)
    said.write_text("[1]")
    with fake_prices(table) as prices, pytest.raises(InputError, match="is damaged"):
        EstimatedPrices(prices, said)


def test_a_refused_operator_is_named_and_what_was_measured_before_stays(tmp_path: Path) -> None:
    last = LayerBackend(GRAPH, LocalPrices(lambda: fake_prices(tmp_path / "no"))).recipes(GRAPH.kept)[-1].recipe
    timer = ArithmeticTimer(refused=last)
    with (
        LocalPrices(lambda: fake_prices(tmp_path / "table.sqlite", timer)) as prices,
        pytest.raises(RefusedOperatorError, match="it crashed"),
    ):
        LayerBackend(GRAPH, prices).price(GRAPH.kept)
    with fake_prices(tmp_path / "table.sqlite") as prices:
        assert [recipe.recipe for recipe in prices.missing(LayerBackend(GRAPH, prices).recipes(GRAPH.kept))] == [last]


def branches() -> ModelGraph:
    builder = GraphBuilder(size=16)
    trunk = builder.conv("stem", 8)
    builder.conv("inner", 8)
    builder.conv("sum", 8, into=trunk)
    builder.conv("last", 16, stride=2)
    builder.linear("classifier", 10)
    return builder.build()


@pytest.mark.parametrize("graph", [branches(), mobilenet_v1(size=32)], ids=["residual", "mobilenet"])
def test_profiling_sees_every_operator_that_any_policy_needs(graph: ModelGraph, tmp_path: Path) -> None:
    space = ChannelSpace.build(graph, 0.3, 128 if len(graph.groups) > 4 else None)
    with LocalPrices(lambda: fake_prices(tmp_path / "table.sqlite")) as prices:
        backend = LayerBackend(graph, prices)
        seen = [recipe.recipe for recipe in recipes_of(space, backend.recipes)]
        assert len(set(seen)) == len(seen)
        first = [recipe.recipe for kept in (graph.kept, space.least) for recipe in backend.recipes(kept)]
        assert set(seen[: len(set(first))]) == set(first)
        generator = np.random.default_rng(0)
        for _ in range(200):
            assert {recipe.recipe for recipe in backend.recipes(space.sample(generator))} <= set(seen)
