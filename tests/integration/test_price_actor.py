"""The actor that prices operators, in a process of its own: asked by several, stopped, killed."""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import latency_fakes
import pytest
import ray
from latency_fakes import ArithmeticTimer, LayerBackend, LayerRecipe, fake_prices

from automl.errors import RunStoppedError, TrimtabError
from automl.orchestration.pool import ray_get
from automl.orchestration.price_actor import RemotePrices, price_actor
from automl.orchestration.ray_session import ray_session
from automl.testing.problems import cifar_resnet
from backends.operator_prices import RefusedOperatorError
from backends.recipes import Recipe, Timing
from search_spaces.channel_space import ChannelSpace

GRAPH = cifar_resnet(8)
SPACE = ChannelSpace.build(GRAPH)


class NotingTimer(ArithmeticTimer):
    """Notes every measurement in a file, and dies once of a recipe where a mark says so."""

    def __init__(self, folder: Path, refused: str = "nothing") -> None:
        super().__init__(refused)
        self.folder = folder

    def measure(self, recipe: Recipe) -> Timing:
        if (self.folder / "deadly").exists():
            (self.folder / "deadly").unlink()
            os._exit(1)
        with (self.folder / "measured").open("a") as file:
            file.write(recipe.recipe + "\n")
        return super().measure(recipe)


def opened(folder: Path, refused: str = "nothing") -> object:
    return fake_prices(folder / "table.sqlite", NotingTimer(folder, refused))


def measured(folder: Path) -> list[str]:
    return (folder / "measured").read_text().splitlines()


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    modules = (sys.modules[__name__], latency_fakes)
    for module in modules:
        ray.cloudpickle.register_pickle_by_value(module)  # Ray's workers cannot import a test module
    with ray_session(1):
        yield
    for module in modules:
        ray.cloudpickle.unregister_pickle_by_value(module)


def test_searches_that_ask_at_once_have_each_operator_measured_once(tmp_path: Path) -> None:
    with price_actor(partial(opened, tmp_path)) as (actor, _), ThreadPoolExecutor(3) as pool:
        backends = [LayerBackend(GRAPH, RemotePrices(actor)) for _ in range(3)]
        found = list(pool.map(lambda backend: backend.price(GRAPH.kept) + backend.price(SPACE.least), backends))
    assert len(set(found)) == 1
    assert len(measured(tmp_path)) == len(set(measured(tmp_path)))
    with fake_prices(tmp_path / "table.sqlite") as prices:
        backend = LayerBackend(GRAPH, prices)
        assert backend.price(GRAPH.kept) + backend.price(SPACE.least) == found[0]


def test_a_refusal_reaches_whoever_asked_as_what_it_is(tmp_path: Path) -> None:
    last = LayerBackend(GRAPH, RemotePrices(None)).recipes(GRAPH.kept)[-1]
    with price_actor(partial(opened, tmp_path, last.recipe)) as (actor, _):
        backend = LayerBackend(GRAPH, RemotePrices(actor))
        with pytest.raises(RefusedOperatorError, match="it crashed") as refusal:
            backend.price(GRAPH.kept)
        assert refusal.value.recipe == last.recipe
        known = LayerRecipe("conv(3, 16, (3, 3), 1024)", 1.0, 1.0)
        assert known.recipe in measured(tmp_path)
        assert RemotePrices(actor).latencies([known])  # others are answered still


def test_a_stopped_actor_tells_what_it_knows_and_measures_nothing_more(tmp_path: Path) -> None:
    with price_actor(partial(opened, tmp_path)) as (actor, _):
        first = LayerBackend(GRAPH, RemotePrices(actor)).price(GRAPH.kept)
        ray_get(actor.stop.remote())
        backend = LayerBackend(GRAPH, RemotePrices(actor))
        assert backend.price(GRAPH.kept) == first
        with pytest.raises(RunStoppedError):
            backend.price(SPACE.least)


def test_a_process_that_dies_is_replaced_and_the_table_stands(tmp_path: Path) -> None:
    with price_actor(partial(opened, tmp_path)) as (actor, _):
        first = LayerBackend(GRAPH, RemotePrices(actor)).price(GRAPH.kept)
        before = len(measured(tmp_path))
        (tmp_path / "deadly").touch()
        backend = LayerBackend(GRAPH, RemotePrices(actor))
        assert backend.price(SPACE.least) < first
        assert backend.price(GRAPH.kept) == first
        assert len(measured(tmp_path)) == len(set(measured(tmp_path)))
        assert before < len(measured(tmp_path))
    assert not (tmp_path / "deadly").exists()


def test_a_table_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "table.sqlite").mkdir()
    with pytest.raises(TrimtabError, match="prices operators died"), price_actor(partial(opened, tmp_path)):
        pass


def test_estimates_rest_on_what_has_been_measured(tmp_path: Path) -> None:
    with pytest.raises(TrimtabError, match="no operator has been measured"), _estimating(tmp_path):
        pass
    with fake_prices(tmp_path / "table.sqlite") as prices:
        LayerBackend(GRAPH, prices).price(GRAPH.kept)
    with _estimating(tmp_path) as (actor, error):
        assert error is not None
        assert 0.0 < error < 0.2
        first = LayerBackend(GRAPH, RemotePrices(actor)).price(SPACE.least)
    assert not (tmp_path / "measured").exists()
    with _estimating(tmp_path) as (actor, _):
        assert LayerBackend(GRAPH, RemotePrices(actor)).price(SPACE.least) == first


def _estimating(folder: Path) -> AbstractContextManager[tuple[Any, float | None]]:
    return price_actor(partial(opened, folder), folder / "estimates.json")
