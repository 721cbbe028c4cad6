"""A search as a Ray Tune trial. Loads nothing heavier than its searcher needs."""

import sys
from collections.abc import Mapping
from typing import Any

from ray import tune

from automl.config import Config
from automl.dispatcher import RemoteEvaluators, ray_get
from automl.errors import RunStoppedError
from automl.search_loop import SearchFailedError, run_search
from automl.searches import make_search
from automl.store import SearchRow
from search_spaces.objective import Constraint
from search_spaces.space import SearchSpace


def run_trial(
    sample: dict[str, Any],
    *,
    searches: Mapping[str, SearchRow],
    config: Config,
    space: SearchSpace,
    constraint: Constraint,
    dispatcher: Any,
) -> None:
    """One search, in a process of its own.

    Args:
        sample: what Tune gives a trial: {"search": name}.
        searches: by name.
        config: of the run.
        space: what may be pruned.
        constraint: that the searcher keeps to.
        dispatcher: handle of the run's `DispatcherActor`.
    """
    search = searches[sample["search"]]
    searcher = make_search(config, space, constraint, search)
    if "torch" in sys.modules:  # an agent's, that is: the others do without
        import torch

        torch.set_num_threads(1)
    snapshot = ray_get(dispatcher.snapshot.remote(search.name))
    error = None
    try:
        run_search(
            searcher,
            RemoteEvaluators(dispatcher, search.name),
            evaluations=search.evaluations,
            lag=config.search.lag,
            snapshot=snapshot,
        )
    except RunStoppedError:
        tune.report({"state": "stopped"})
        return
    except SearchFailedError as failure:
        error = str(failure)
    ray_get(dispatcher.finish.remote(search.name, error))
    tune.report({"state": "finished" if error is None else "failed"})
