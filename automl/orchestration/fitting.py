"""Running a tuner of Ray Tune to its end, watched and stoppable."""

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.trainable import wrap_function
from ray.util.placement_group import NODE_ID_LABEL_KEY

from automl.errors import RunStoppedError, TrimtabError
from automl.orchestration.placement import this_node
from automl.orchestration.pool import POLL_S, last_line
from automl.signals import StopSignal

STOP_S = 15.0
SEARCHER_BYTES = 64 * 2**20
"""Memory that Ray sets aside for a searcher. It takes no CPU slot: those belong to the evaluators."""


def trainable(run: Callable[..., None], **given: Any) -> type[tune.Trainable]:
    """What Tune makes processes of: they run on the driver's node, whose directories they work in, as `Search`.

    Args:
        run: a search, called with what Tune gives a trial and then with what is given here.
        given: the same for all trials.
    """
    made = tune.with_parameters(run, **given)
    here = [{NODE_ID_LABEL_KEY: this_node()}]
    resources = tune.PlacementGroupFactory([{"memory": SEARCHER_BYTES}], bundle_label_selector=here)
    search = wrap_function(tune.with_resources(made, resources))
    search.__name__ = search.__qualname__ = "Search"  # what the dashboard and `ps` call it
    return search


def searches_at_once(evaluators: int | str) -> int:
    """How many searches go on side by side, so that evaluators are busy and processes are few."""
    return (evaluators if isinstance(evaluators, int) else os.cpu_count() or 1) + 1


def fit(tuner: tune.Tuner, look: Callable[[], None], stop: StopSignal, actors: Sequence[Any]) -> None:
    """Run the trials, each a search.

    Args:
        tuner: whose trials they are.
        look: called several times a second.
        stop: whether to stop.
        actors: that trials wait for, told when they are to stop.

    Raises:
        RunStoppedError: they were told to stop, and have saved their state.
        TrimtabError: Tune failed, or one of its trials.
    """
    outcome: list[Any] = []
    # Tune blocks, and handles signals, only in a main thread; there, we watch and are interrupted.
    thread = threading.Thread(target=lambda: outcome.append(_outcome(tuner)), name="tune", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            stop.check()
            look()
            thread.join(POLL_S)
        stop.check()
    except RunStoppedError:
        with suppress(RayError):  # whoever told us to stop may have told Ray's processes, too
            ray.get([actor.stop.remote() for actor in actors], timeout=STOP_S)
        thread.join(STOP_S)  # the trials save their state
        raise
    result = outcome[0]
    if isinstance(result, Exception):
        raise TrimtabError(f"the searches did not run: {result}") from result
    for error in result.errors:
        raise TrimtabError(f"a search ended unexpectedly: {last_line(error)}") from error


def _outcome(tuner: tune.Tuner) -> Any:
    try:
        return tuner.fit()
    except Exception as error:  # handed to the thread that waits, which raises
        return error
