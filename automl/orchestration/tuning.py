"""The trials of a tuning, on Ray Tune: a search each, whose scheduler stops them early or has them copy one another.

Tune's own files are never read again: a resumed tuning starts a new Tuner from the records of its trials.
"""

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler

from automl.costs.pricing import price, pricing_backend
from automl.errors import RunStoppedError
from automl.orchestration.fitting import fit, searches_at_once, trainable
from automl.orchestration.pool import ray_get
from automl.orchestration.search_loop import SearchFailedError, run_search
from automl.orchestration.searches import make_search
from automl.problem import Problem
from automl.progress import Progress
from automl.run.directory import RunClock, write_atomically
from automl.run.store import SearchRow
from automl.signals import StopSignal
from automl.tuning.config import TuneSection, TuningConfig
from automl.tuning.records import TrialRecord, TuningDirectory
from search_spaces.objective import Constraint, Evaluation
from search_spaces.policy import CompressionPolicy
from search_spaces.space import SearchSpace

TIME, SCORE = "evaluations", "accuracy"
NOTHING = -1e9
"""The score of a trial that has found nothing within the budgets yet."""
SNAPSHOT = "searcher.safetensors"
RECORD = "record.json"


def run_tuning(
    config: TuningConfig,
    problem: Problem,
    pool: Any,
    directory: TuningDirectory,
    progress: Progress,
    clock: RunClock,
    stop: StopSignal,
    scratch: Path,
) -> list[TrialRecord]:
    """Run the trials that have not ended; returns the records of all.

    Args:
        config: of the tuning.
        problem: with the trained baseline.
        pool: handle of an `EvaluatorPool`.
        directory: of the tuning.
        progress: is shown how far the trials are.
        clock: of the tuning.
        stop: whether it is to stop.
        scratch: directory for what Tune writes and nobody reads.

    Raises:
        RunStoppedError: it was told to stop; it can be resumed.
        TrimtabError: a trial ended unexpectedly.
    """
    how = config.tune
    records = directory.records()
    if all(record.state != "running" for record in records):
        return records
    # trials that have ended tell ASHA first what is good; in a population they have no part any more
    ended = [each for each in records if each.state != "running" and each.reports and how.scheduler == "asha"]
    joining = [*ended, *(each for each in records if each.state == "running")]
    watch = _Watch(directory, stop, records)
    search = trainable(
        run_trial,
        config=config,
        space=problem.space,
        constraints=problem.constraints,
        pool=pool,
        path=directory.path.resolve(),
    )
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # errors are raised below, in one line
    tuner = tune.Tuner(
        search,
        param_space={"start": tune.grid_search([{"name": each.name, "options": each.options} for each in joining])},
        tune_config=tune.TuneConfig(
            metric=SCORE,
            mode="max",
            scheduler=scheduler_of(how, config.search.evaluations),
            # a population lives at once
            max_concurrent_trials=len(joining)
            if how.scheduler == "pbt"
            else searches_at_once(config.search.evaluators),
            reuse_actors=True,  # a process for the next trial, not the next process
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="tuning",
            storage_path=str(scratch),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
            callbacks=[watch],
        ),
    )

    def look() -> None:
        for name, (count, best) in sorted(watch.seen.items()):
            note = "" if best is None else f"best {best:.4f}"
            progress.update(name, int(count), config.search.evaluations, note)
        clock.beat()

    fit(tuner, look, stop, [pool])
    return directory.records()


def scheduler_of(how: TuneSection, evaluations: int) -> TrialScheduler:
    """What decides which trials go on.

    Args:
        how: the tuning's section.
        evaluations: of a whole search.
    """
    if how.scheduler == "asha":
        return ASHAScheduler(time_attr=TIME, max_t=evaluations, grace_period=how.grace, reduction_factor=how.reduction)
    generator = np.random.default_rng([how.seed, how.trials])
    ranges = how.ranges()

    def perturbed(given: dict[str, Any]) -> dict[str, Any]:
        options = given["start"]["options"]
        moved = {name: each.perturb(options[name], generator) for name, each in ranges.items()}
        return {**given, "start": {**given["start"], "options": {**options, **moved}}}

    return PopulationBasedTraining(
        time_attr=TIME,
        perturbation_interval=how.perturb,
        quantile_fraction=how.quantile,
        custom_explore_fn=perturbed,
        log_config=False,
    )


def run_trial(
    sample: dict[str, Any],
    *,
    config: TuningConfig,
    space: SearchSpace,
    constraints: Sequence[Constraint],
    pool: Any,
    path: Path,
) -> None:
    """One search with options of its own, in a process of its own; it reports how good it is as it goes.

    Args:
        sample: what Tune gives a trial: {"start": its name at first and its options}. A trial that copies another is
            given that one's name there; its own is the name of the process's trial.
        config: of the tuning.
        space: what is decided.
        constraints: the budgets.
        pool: handle of an `EvaluatorPool`.
        path: directory of the tuning.
    """
    directory = TuningDirectory(path)
    context = tune.get_context()
    name, options = str(context.get_trial_name()), sample["start"]["options"]
    copied = tune.get_checkpoint()
    if copied is not None:
        with copied.as_directory() as folder:
            source = TrialRecord.from_json(Path(folder, RECORD).read_bytes())
            snapshot: bytes | None = Path(folder, SNAPSHOT).read_bytes()
        own = directory.read(name) or TrialRecord(name, options)
        record = directory.write(replace(own, options=options, reports=source.reports), snapshot)
    else:
        record = directory.read(name) or TrialRecord(name, options)
        if config.tune.scheduler == "asha":
            for count, best in record.reports:  # of before the tuning was resumed
                tune.report({TIME: count, SCORE: NOTHING if best is None else best})
        if record.state != "running":
            return
        snapshot = directory.read_snapshot(record)
    backend = pricing_backend(config.measure.accelerator)
    search = SearchRow(name, config.search.algorithm, config.search.seeds[0], config.search.evaluations)
    reporter = _Reporter(pool, lambda policy: price(space.graph, policy, backend), directory, record)
    try:
        searcher = make_search(config.of_search(record.options), space, constraints, search, backend)
        import torch

        torch.set_num_threads(1)
        run_search(
            searcher,
            reporter,
            evaluations=search.evaluations,
            lag=config.search.lag,
            snapshot=snapshot,
            snapshot_every=config.tune.every,
        )
    except RunStoppedError:
        return
    except SearchFailedError as failure:
        directory.write(replace(reporter.record, state="failed", error=str(failure)))
        return
    reporter.end()


class _Reporter:
    """The `Evaluators` of a trial's search: a pool evaluates, and each snapshot is put on record and reported.

    Args:
        pool: handle of an `EvaluatorPool`.
        price: what a policy costs, by metric.
        directory: of the tuning.
        record: of the trial so far.
    """

    def __init__(
        self,
        pool: Any,
        price: Callable[[CompressionPolicy], Mapping[str, float]],
        directory: TuningDirectory,
        record: TrialRecord,
    ) -> None:
        self.record = record
        self._pool = pool
        self._price = price
        self._directory = directory
        self._waiting: dict[int, Any] = {}
        self._evaluations = record.evaluations
        self._best = record.accuracy
        self._stopping = False

    def submit(self, number: int, policy: CompressionPolicy, share: float) -> None:
        """Have a proposal evaluated."""
        self._waiting[number] = self._pool.evaluate.remote(policy, dict(self._price(policy)), share)

    def result(self, number: int) -> Evaluation:
        """Wait for a proposal's evaluation."""
        try:
            evaluation: Evaluation = ray_get(self._waiting.pop(number))
        except RunStoppedError:
            self._stopping = True
            raise
        self._evaluations += evaluation.share
        if evaluation.feasible and evaluation.share == 1.0:
            self._best = evaluation.accuracy if self._best is None else max(self._best, evaluation.accuracy)
        return evaluation

    def save(self, rewards: Mapping[int, float], snapshot: bytes | None) -> None:
        """Keep a snapshot with the trial's record, and report."""
        if snapshot is None:
            return
        self.record = self._directory.write(self.record.reported(self._evaluations, self._best), snapshot)
        if self._stopping:
            return
        with tempfile.TemporaryDirectory() as folder:
            write_atomically(Path(folder, SNAPSHOT), snapshot)
            write_atomically(Path(folder, RECORD), self.record.to_json())
            tune.report(self._metrics(), checkpoint=tune.Checkpoint.from_directory(folder))

    def end(self) -> None:
        """The search is over."""
        self.record = self._directory.write(
            replace(self.record.reported(self._evaluations, self._best), state="finished")
        )
        tune.report(self._metrics())

    def _metrics(self) -> dict[str, float]:
        return {TIME: self._evaluations, SCORE: NOTHING if self._best is None else self._best}


class _Watch(tune.Callback):
    """Looks on in the process that drives the tuning.

    Attributes:
        seen: (evaluations, best accuracy) of each trial.
    """

    def __init__(self, directory: TuningDirectory, stop: StopSignal, records: Sequence[TrialRecord]) -> None:
        self._directory = directory
        self._stop = stop
        self.seen = {each.name: (each.evaluations, each.accuracy) for each in records if each.reports}

    def __getstate__(self) -> dict[str, Any]:  # Tune writes its callbacks down, and nobody reads them again
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Note how far it is."""
        best = result[SCORE]
        self.seen = {**self.seen, str(trial): (result[TIME], None if best == NOTHING else best)}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """What ends while the tuning goes on, and has not ended by itself, was stopped for others."""
        record = self._directory.read(str(trial))
        if record is not None and record.state == "running" and not self._stop.requested:
            self._directory.mark_stopped(record.name)


def _name(trial: Any) -> str:
    return str(trial.config["start"]["name"])
