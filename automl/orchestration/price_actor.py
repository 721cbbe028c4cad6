"""The one process of a run that prices operators and measures what is missing, and what the others ask it by."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from automl.costs.latency import EstimatedPrices
from automl.errors import RunStoppedError, TrimtabError
from automl.orchestration.metrics import Meters
from automl.orchestration.placement import free_name, on_this_node
from automl.orchestration.pool import last_line, ray_get
from backends.operator_prices import OperatorPrices
from backends.recipes import Recipe

BATCH = 8
"""Operators that are measured in a row before others are answered."""

PAUSE_S = 0.1
"""Evaluators who wait for the machine get in between two batches."""

RETRIES = 2
"""How often a question is asked again where the actor's process died of it; the table keeps what was measured."""

CLOSE_S = 10.0


class PriceActor:
    """Owns the table of a run.

    Args:
        opened: opens the table.
        estimates: where estimates are written down; None where everything is measured.
        run: name of the run, for the metrics.
    """

    def __init__(
        self, opened: Callable[[], AbstractContextManager[OperatorPrices]], estimates: Path | None = None, run: str = ""
    ) -> None:
        self._meters = Meters(run)
        self._stack = ExitStack()
        self._prices = self._stack.enter_context(opened())
        self._estimated = None if estimates is None else EstimatedPrices(self._prices, estimates)
        self._stopping = False

    async def latencies(self, recipes: Sequence[Recipe]) -> dict[str, float]:
        """Seconds by recipe text.

        Raises:
            RefusedOperatorError: an operator cannot be measured.
            RunStoppedError: the run is to stop, and an operator is not known yet.
        """
        missing = self._prices.missing(recipes)
        self._meters.add("trimtab_table_misses", len(missing))
        self._meters.add("trimtab_table_hits", len({recipe.recipe for recipe in recipes}) - len(missing))
        if self._estimated is not None:
            return self._estimated.latencies(recipes)
        while missing:
            if self._stopping:
                raise RunStoppedError("the run is stopping")
            self._prices.latencies(missing[:BATCH])
            missing = missing[BATCH:]
            await asyncio.sleep(PAUSE_S if missing else 0)
        return self._prices.latencies(recipes)

    async def estimation_error(self) -> float | None:
        """Mean share that estimates are off by; None where everything is measured."""
        return None if self._estimated is None else self._estimated.error

    async def notices(self) -> list[str]:
        """What became known of the table and the devices, in a line each."""
        return self._prices.notices

    async def stop(self) -> None:
        """Measure nothing any more."""
        self._stopping = True

    async def close(self) -> None:
        """Let go of the table and of what measures."""
        self._stack.close()


class RemotePrices:
    """The actor's prices, as another process asks for them; each recipe is asked for once.

    Args:
        actor: handle of the run's `PriceActor`.
        get: waits for an actor's answer.
    """

    def __init__(self, actor: Any, get: Callable[[Any], Any] = ray_get) -> None:
        self._actor = actor
        self._get = get
        self._known: dict[str, float] = {}

    def latencies(self, recipes: Sequence[Recipe]) -> dict[str, float]:
        """See `backends.table_backend.Latencies`."""
        new = {recipe.recipe: recipe for recipe in recipes if recipe.recipe not in self._known}
        if new:
            self._known.update(_answer(self._actor.latencies.remote(list(new.values())), self._get))
        return {recipe.recipe: self._known[recipe.recipe] for recipe in recipes}


@contextmanager
def price_actor(
    opened: Callable[[], AbstractContextManager[OperatorPrices]],
    estimates: Path | None = None,
    get: Callable[[Any], Any] = ray_get,
    run: str = "",
) -> Iterator[tuple[Any, float | None]]:
    """A run's `PriceActor`. It takes no CPU slot: while it measures, the evaluators wait for the machine's lease.

    Args:
        opened, estimates, run: see `PriceActor`.
        get: waits for an actor's answer.

    Yields:
        The actor's handle, and the mean share that estimates are off by; None where everything is measured.

    Raises:
        TrimtabError: the table cannot be opened.
    """
    remote: Any = ray.remote(PriceActor)
    actor = remote.options(
        name=free_name("prices"),
        num_cpus=0,
        max_concurrency=1000,
        max_restarts=-1,
        max_task_retries=RETRIES,
        scheduling_strategy=on_this_node(),
    ).remote(opened, None if estimates is None else estimates.resolve(), run)
    try:
        yield actor, _answer(actor.estimation_error.remote(), get)
    finally:
        with suppress(RayError):
            ray.get([actor.stop.remote(), actor.close.remote()], timeout=CLOSE_S)
        ray.kill(actor)


def _answer(reference: Any, get: Callable[[Any], Any]) -> Any:
    try:
        return get(reference)
    except RayActorError as error:
        raise TrimtabError(f"the process that prices operators died: {last_line(error)}") from None
