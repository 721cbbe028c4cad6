"""A search as a Ray Tune trial. Loads nothing heavier than its searcher needs."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ray import tune

from automl.config import Config
from automl.costs.latency import priced_by_table
from automl.costs.pricing import price, pricing_backend
from automl.errors import RunStoppedError
from automl.orchestration.dispatcher import RemoteEvaluators
from automl.orchestration.pool import ray_get
from automl.orchestration.price_actor import RemotePrices
from automl.orchestration.search_loop import SearchFailedError, run_search
from automl.orchestration.searches import make_search
from automl.predictors.samples import Sample
from automl.run.store import SearchRow
from automl.searchers.base import State
from automl.searchers.prior import Prior
from backends.base import HardwareBackend
from backends.operator_prices import RefusedOperatorError
from search_spaces.objective import Constraint
from search_spaces.space import SearchSpace


def run_trial(
    sample: dict[str, Any],
    *,
    searches: Mapping[str, SearchRow],
    config: Config,
    space: SearchSpace,
    constraints: Sequence[Constraint],
    dispatcher: Any,
    prices: Any | None = None,
    agent: State | None = None,
    prior: Prior | None = None,
    known: Sequence[Sample] = (),
) -> None:
    """One search, in a process of its own.

    Args:
        sample: what Tune gives a trial: {"search": name}.
        searches: by name.
        config: of the run.
        space: what is decided.
        constraints: that the searcher keeps to.
        dispatcher: handle of the run's `DispatcherActor`.
        prices: handle of its `PriceActor`; None where the budget is counted.
        agent: what its agent begins with.
        prior: where the run's searches want one, see `make_search`.
        known: sub-networks that they learn from.
    """
    search = searches[sample["search"]]
    graph = space.graph
    backend: HardwareBackend = pricing_backend(config.measure.accelerator)
    if prices is not None:
        backend = priced_by_table(config.measure, graph, RemotePrices(prices))
    error = None
    try:
        searcher = make_search(config, space, constraints, search, backend, agent, prior, known)
        if "torch" in sys.modules:  # an agent's, or a table's: the others do without
            import torch

            torch.set_num_threads(1)
        snapshot = ray_get(dispatcher.snapshot.remote(search.name))
        evaluators = RemoteEvaluators(dispatcher, search.name, lambda policy: price(graph, policy, backend))
        run_search(
            searcher,
            evaluators,
            evaluations=search.evaluations,
            lag=config.search.lag,
            snapshot=snapshot,
            thought=evaluators.thought,
        )
    except RunStoppedError:
        tune.report({"state": "stopped"})
        return
    except RefusedOperatorError as refusal:
        ray_get(dispatcher.give_up.remote(search.name, str(refusal)))
        tune.report({"state": "failed"})
        return
    except SearchFailedError as failure:
        error = str(failure)
    ray_get(dispatcher.finish.remote(search.name, error))
    tune.report({"state": "finished" if error is None else "failed"})
