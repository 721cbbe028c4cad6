"""The searches of a run, on Ray: a Tune trial a search, evaluator actors shared by all of them.

Nothing that Ray keeps is needed to go on: a resumed run makes new trials, which take their searchers' snapshots and
the evaluations on record from the run directory.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayActorError, RayError

from automl.config import Config
from automl.errors import TrimtabError
from automl.orchestration.dispatcher import DispatcherActor, SearchProgress
from automl.orchestration.fitting import POLL_S, SEARCHER_BYTES, fit
from automl.orchestration.pool import ATTEMPTS, EvaluatorPool, last_line, ray_get, when_ready
from automl.orchestration.transfer import initial_agent
from automl.orchestration.trial import run_trial
from automl.orchestration.worker import Worker
from automl.predictors.samples import Sample
from automl.problem import Problem
from automl.progress import Progress
from automl.run.directory import RunClock, RunDirectory
from automl.run.store import SearchRow
from automl.searchers.prior import Prior
from automl.signals import StopSignal
from search_spaces.objective import Constraint

Job = Callable[[Any], Any]
"""Given a worker's handle, the reference of what it is to do."""

CLOSE_S = 10.0


@contextmanager
def evaluators(
    config: Config, baseline: Path, imports_from: str, constraints: Sequence[Constraint]
) -> Iterator[list[Any]]:
    """The worker actors of a config, one CPU each, and their part of a GPU; Ray starts one anew when it dies.

    Args:
        config: says how many.
        baseline, imports_from, constraints: see `Worker`.

    Raises:
        TrimtabError: they are to run on a GPU, and Ray has none.
    """
    remote: Any = ray.remote(Worker)
    stamp = time.time_ns()  # names are unique, also in a Ray that others use
    gpus = None
    if config.search.device == "cuda":
        resources: Any = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus = gpu_share(config.search.evaluators, int(resources.get("GPU", 0)))
    actors = [
        remote.options(name=f"evaluator-{index}-{stamp}", num_cpus=1, num_gpus=gpus, max_restarts=-1).remote(
            config, baseline, imports_from, constraints
        )
        for index in range(config.search.evaluators)
    ]
    try:
        yield actors
    finally:
        for actor in actors:
            ray.kill(actor)


@contextmanager
def evaluator_pool(
    config: Config, baseline: Path, imports_from: str, constraints: Sequence[Constraint]
) -> Iterator[Any]:
    """The actor that hands policies to workers of its own; see `evaluators` and `EvaluatorPool`."""
    with evaluators(config, baseline, imports_from, constraints) as workers:
        actor: Any = ray.remote(EvaluatorPool)
        pool = actor.options(num_cpus=0, max_concurrency=10_000).remote(workers, constraints)
        try:
            yield pool
        finally:
            ray.kill(pool)


def gpu_share(evaluators: int, gpus: int) -> float:
    """The part of a GPU that each evaluator reserves, so that all of them find room.

    Raises:
        TrimtabError: there is no GPU; Ray would wait for one for ever.

    >>> gpu_share(3, 1), gpu_share(3, 2), gpu_share(2, 4)
    (0.3333, 0.5, 1.0)
    """
    if gpus < 1:
        raise TrimtabError("search.device is 'cuda', and the Ray that runs here has no GPU; start it with one")
    return 10_000 // math.ceil(evaluators / gpus) / 10_000  # Ray counts ten-thousandths


def run_searches(
    problem: Problem,
    searches: Sequence[SearchRow],
    workers: Sequence[Any],
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
        workers: see `evaluators`.
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
    dispatcher = actor.options(name=f"dispatcher-{time.time_ns()}", num_cpus=0, max_concurrency=10_000).remote(
        directory.store_file, directory.searchers, list(searches), list(workers), problem.constraints
    )
    try:
        wanted = {search.name for search in searches}
        todo = [row for row in ray_get(dispatcher.unfinished.remote()) if row.name in wanted]
        if todo:
            _run_trials(problem, todo, dispatcher, progress, clock, stop, scratch, constraints, prices, prior, known)
        progress.searches(ray_get(dispatcher.progress.remote()), problem.constraint)
    finally:
        with suppress(RayError):  # where the actor has died, its store is closed
            ray.get(dispatcher.close.remote(), timeout=CLOSE_S)
        ray.kill(dispatcher)


def spread(
    jobs: Mapping[str, Job],
    workers: Sequence[Any],
    watch: Callable[[Sequence[str], Mapping[str, Any]], None],
) -> dict[str, Any]:
    """Have the workers do jobs side by side; one whose process dies is done again, once.

    Args:
        jobs: by name, each given to the worker that does it.
        workers: see `evaluators`.
        watch: told of the names that are being worked on and of what those gave that are finished, several times a
            second, and before a worker is given its next.

    Returns:
        What each job gave, in the order of the jobs.

    Raises:
        TrimtabError: a job failed, or its process died again.
    """
    waiting = list(jobs)
    idle = list(workers)
    running: dict[Any, tuple[str, Any]] = {}
    reviving: dict[Any, Any] = {}
    deaths: Counter[str] = Counter()
    results: dict[str, Any] = {}
    while waiting or running:
        while waiting and idle:
            name, worker = waiting.pop(0), idle.pop(0)
            running[jobs[name](worker)] = (name, worker)
        ready, _ = ray.wait([*running, *reviving], timeout=POLL_S)
        for reference in ready:
            if reference in reviving:
                idle.append(reviving.pop(reference))
                continue
            name, worker = running.pop(reference)
            try:
                results[name] = ray_get(reference)
            except RayActorError as death:
                deaths[name] += 1
                if deaths[name] == ATTEMPTS or death.actor_init_failed:
                    raise TrimtabError(f"the process that makes network {name!r} died: {last_line(death)}") from death
                waiting.append(name)
                reviving[when_ready(worker)] = worker
                continue
            idle.append(worker)
        watch([name for name, _ in running.values()], results)
    return {name: results[name] for name in jobs}


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
    trial = tune.with_parameters(
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
        tune.with_resources(trial, tune.PlacementGroupFactory([{"memory": SEARCHER_BYTES}])),
        param_space={"search": tune.grid_search(list(by_name))},
        tune_config=tune.TuneConfig(max_concurrent_trials=how.evaluators + 1),
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
