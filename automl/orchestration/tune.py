"""The searches of a run, on Ray: a Tune trial a search, evaluator actors shared by all of them.

Nothing that Ray keeps is needed to go on: a resumed run makes new trials, which take their searchers' snapshots and
the evaluations on record from the run directory.
"""

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError

from automl.errors import TrimtabError
from automl.orchestration.crew import Crew, serving
from automl.orchestration.dispatcher import DispatcherActor, SearchProgress
from automl.orchestration.fitting import fit, searches_at_once, trainable
from automl.orchestration.placement import free_name, on_this_node
from automl.orchestration.pool import POLL_S, ray_get
from automl.orchestration.transfer import initial_agent
from automl.orchestration.trial import run_trial
from automl.predictors.samples import Sample
from automl.problem import Problem
from automl.progress import Progress
from automl.run.directory import RunClock, RunDirectory
from automl.run.store import SearchRow
from automl.searchers.prior import Prior
from automl.signals import StopSignal
from search_spaces.objective import Constraint

CLOSE_S = 10.0


def run_searches(
    problem: Problem,
    searches: Sequence[SearchRow],
    crew: Crew,
    directory: RunDirectory,
    progress: Progress,
    clock: RunClock,
    stop: StopSignal,
    scratch: Path,
    constraints: Sequence[Constraint] | None = None,
    prices: Any | None = None,
    prior: Prior | None = None,
    known: Sequence[Sample] = (),
) -> None:
    """Run those of the searches that have not ended; returns when all have.

    Args:
        problem: with the trained baseline.
        searches: what to run; the store is told of them.
        crew: the run's evaluators.
        directory: of the run.
        progress: is shown how far they are.
        clock: of the run.
        stop: whether the run is to stop.
        scratch: directory for what Tune writes and nobody reads.
        constraints: for the searchers, where they are not the problem's.
        prices: handle of the run's `PriceActor`, under a latency budget.
        prior: where the run's searches want one, see `automl.orchestration.searches.make_search`.
        known: sub-networks that they learn from, see the same.

    Raises:
        RunStoppedError: the run was told to stop; it can be resumed.
        TrimtabError: a search ended early, or its process died.
    """
    actor: Any = ray.remote(DispatcherActor)
    options = {"num_cpus": 0, "max_concurrency": 10_000, "scheduling_strategy": on_this_node()}
    dispatcher = actor.options(name=free_name("dispatcher"), **options).remote(
        directory.store_file.resolve(), directory.searchers.resolve(), list(searches), problem.constraints
    )
    try:
        wanted = {search.name for search in searches}
        todo = [row for row in ray_get(dispatcher.unfinished.remote()) if row.name in wanted]
        if todo:
            with serving(crew, dispatcher):
                _run_trials(
                    problem, todo, dispatcher, progress, clock, stop, scratch, constraints, prices, prior, known
                )
        progress.searches(ray_get(dispatcher.progress.remote()), problem.constraint)
    finally:
        with suppress(RayError):  # where the actor has died, its store is closed
            ray.get(dispatcher.close.remote(), timeout=CLOSE_S)
        ray.kill(dispatcher)


def _run_trials(
    problem: Problem,
    todo: Sequence[SearchRow],
    dispatcher: Any,
    progress: Progress,
    clock: RunClock,
    stop: StopSignal,
    scratch: Path,
    constraints: Sequence[Constraint] | None,
    prices: Any | None,
    prior: Prior | None,
    known: Sequence[Sample],
) -> None:
    how = problem.config.search
    by_name = {search.name: search for search in todo}
    search = trainable(
        run_trial,
        searches=by_name,
        config=problem.config,
        space=problem.space,
        constraints=constraints or problem.constraints,
        dispatcher=dispatcher,
        prices=prices,
        agent=initial_agent(how),
        prior=prior,
        known=known,
    )
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # errors are raised below, in one line
    tuner = tune.Tuner(
        search,
        param_space={"search": tune.grid_search(list(by_name))},
        tune_config=tune.TuneConfig(max_concurrent_trials=searches_at_once(how.evaluators)),
        run_config=tune.RunConfig(
            name="searches",
            storage_path=str(scratch),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )

    def look() -> None:
        rows: list[SearchProgress] = ask(dispatcher.progress.remote(), stop)
        progress.searches(rows, problem.constraint)
        clock.beat()

    fit(tuner, look, stop, [actor for actor in (dispatcher, prices) if actor is not None])
    for row in ray_get(dispatcher.progress.remote()):
        if row.error is not None:
            raise TrimtabError(f"search {row.name!r} stopped after {row.done} evaluations: {row.error}")
        if row.name in by_name and not row.finished:
            raise TrimtabError(f"search {row.name!r} ended before it was finished, after {row.done} evaluations")


def ask(reference: Any, stop: StopSignal) -> Any:
    """An actor's answer; RunStoppedError where the run is to stop meanwhile."""
    while True:
        stop.check()
        ready, _ = ray.wait([reference], timeout=POLL_S)
        if ready:
            return ray_get(reference)
