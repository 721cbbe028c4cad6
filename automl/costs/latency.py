"""The latency table of a config: who opens it, and the backend that prices networks by it."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Self

from automl.config import Config
from automl.config_sections import MeasureSection
from automl.errors import InputError
from automl.run.directory import write_json
from backends import table_backend
from backends.operator_prices import OperatorPrices, Progress
from backends.recipes import Recipe
from backends.regression import LatencyRegression
from backends.table_backend import Latencies, TableBackend
from search_spaces.graph import ModelGraph


@contextmanager
def open_prices(measure: MeasureSection) -> Iterator[OperatorPrices]:
    """The table of the config's backend on this device, with what measures what is missing in it.

    Raises:
        InputError: the config measures nothing.
        TrimtabError: the table cannot be opened.
    """
    with table_backend.open_prices(_engine(measure), threads=measure.threads, device=measure.remote) as prices:
        yield prices


def local_prices(config: Config, watch: Progress | None = None) -> "LocalPrices":
    """Prices of operators for this process; nothing is opened before it is asked for one."""
    return LocalPrices(lambda: open_prices(config.measure), watch)


def priced_by_table(measure: MeasureSection, graph: ModelGraph, prices: Latencies) -> TableBackend:
    """What prices networks made of the graph by the config's latency table.

    Raises:
        InputError: the config measures nothing, or the network has operators that the backend cannot run.
    """
    backend = TableBackend(_engine(measure), graph, prices, threads=measure.threads, device=measure.remote)
    backend.require(graph)
    return backend


def table_key(measure: MeasureSection) -> str:
    """What the config's latency table is for: device, engine, versions and the source of the code that it times."""
    from backends.table_backend import find_engine

    engine = _engine(measure)
    return find_engine(engine, measure.remote).device(engine, measure.threads).text


def _engine(measure: MeasureSection) -> str:
    if measure.backend == "none":
        raise InputError("latencies need a backend that measures, got measure.backend 'none'; set it to 'tvm'")
    return measure.backend


class LocalPrices:
    """Prices that this process looks up, and has measured by a child of its own; a context manager.

    The table is opened by the first question that needs it. What was asked once is kept.

    Args:
        opened: opens the table.
        watch: told of every operator that is measured.
    """

    def __init__(
        self, opened: Callable[[], AbstractContextManager[OperatorPrices]], watch: Progress | None = None
    ) -> None:
        self._open = opened
        self._watch = watch
        self._stack = ExitStack()
        self._prices: OperatorPrices | None = None
        self._known: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def prices(self) -> OperatorPrices:
        """The open table."""
        if self._prices is None:
            self._prices = self._stack.enter_context(self._open())
        return self._prices

    def latencies(self, recipes: Sequence[Recipe]) -> dict[str, float]:
        """See `backends.table_backend.Latencies`."""
        new = [recipe for recipe in recipes if recipe.recipe not in self._known]
        if new:
            self._known.update(self.prices.latencies(new, self._watch))
        return {recipe.recipe: self._known[recipe.recipe] for recipe in recipes}

    def close(self) -> None:
        """Let go of the table and of what measures; a later question opens them again."""
        self._prices = None
        self._stack.close()


class EstimatedPrices:
    """Prices where time presses: nothing is measured, a regression stands in for what the table does not know.

    What it stood in with is written down, so that a resumed run is told the same, whatever has been measured since.

    Args:
        prices: the open table.
        path: where estimates are written down.

    Raises:
        TrimtabError: nothing has been measured that a regression could rest on.
    """

    def __init__(self, prices: OperatorPrices, path: Path) -> None:
        self._prices = prices
        self._path = path
        self._said = _read_estimates(path)
        self._regression = LatencyRegression.fit(prices.table.entries())

    @property
    def error(self) -> float:
        """Mean share that the regression is off by, where it had not seen the measurement."""
        return self._regression.error

    def latencies(self, recipes: Sequence[Recipe]) -> dict[str, float]:
        """See `backends.table_backend.Latencies`; an estimate that was given once stands."""
        unsaid = [recipe for recipe in recipes if recipe.recipe not in self._said]
        found = self._prices.estimates(unsaid, self._regression)
        fresh = {text: estimate.latency_s for text, estimate in found.items() if not estimate.measured}
        if fresh:
            self._said.update(fresh)
            write_json(self._path, self._said)
        measured = {text: estimate.latency_s for text, estimate in found.items()}
        return {recipe.recipe: self._said.get(recipe.recipe) or measured[recipe.recipe] for recipe in recipes}


def _read_estimates(path: Path) -> dict[str, float]:
    try:
        found = json.loads(path.read_bytes())
        return {str(text): float(seconds) for text, seconds in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is damaged: {error}") from None
