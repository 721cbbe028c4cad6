"""A tuning from its config to its result, and from where it was stopped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automl.errors import InputError, RunStoppedError
from automl.orchestration.ray_session import cpus_of, modules_of, ray_session
from automl.orchestration.searches import make_search, wants_prior
from automl.problem import Problem
from automl.progress import Progress
from automl.run.directory import RunClock, make_importable, write_atomically
from automl.run.driving import driving
from automl.run.store import SearchRow
from automl.searchers.base import Searcher
from automl.signals import StopSignal
from automl.tuning.config import TuningConfig
from automl.tuning.records import TrialRecord, TuningDirectory, ranked


@dataclass(frozen=True)
class TuningResult:
    """What a tuning came to.

    Attributes:
        directory: of the tuning.
        trials: its trials, the best first.
        best: config of a search with the best options; None where no trial got as far as a report.
        stopped: whether it was told to stop; it can be resumed.
    """

    directory: Path
    trials: Sequence[TrialRecord]
    best: Path | None
    stopped: bool = False


def tune(config: TuningConfig, out: Path, progress: Progress) -> TuningResult:
    """Tune the options of a config's search.

    Args:
        config: of the tuning.
        out: its directory, which must not exist or be empty.
        progress: is shown how far it is.

    Raises:
        InputError: the config cannot work; nothing has been written.
        TrimtabError: a trial failed; the directory is kept, `resume_tuning` goes on with it.
    """
    TuningDirectory.check_free(out)
    problem = Problem.outline(config)
    check_options(config, problem)
    return _drive(TuningDirectory.create(out, config), problem, progress)


def resume_tuning(path: Path, progress: Progress) -> TuningResult:
    """Go on with a tuning that was stopped or killed: trials from their last reports. Raises as `tune`."""
    directory = TuningDirectory.open(path)
    make_importable(directory.info().working_directory)
    weights = directory.baseline_file if directory.baseline_file.exists() else None
    return _drive(directory, Problem.outline(directory.config(), weights), progress)


def check_options(config: TuningConfig, problem: Problem) -> None:
    """See that searches begin at the ends of every option's range, and in a population go on there.

    Raises:
        InputError: an option that the algorithm does not have, a value out of range, or one that cannot change while
            a search goes on.
    """
    how = config.search
    if wants_prior(how):
        raise InputError(
            "what a search is to know before it starts is not computed in a tuning: set search.options.sensitivity to "
            "'loss', or take another algorithm than 'gradient'"
        )

    def made(options: Mapping[str, Any]) -> Searcher:
        row = SearchRow("trial", how.algorithm, how.seeds[0], how.evaluations)
        return make_search(config.of_search(options), problem.space, problem.constraints, row, problem.backend)

    ranges = config.tune.ranges()
    first = {name: each.ends[0] for name, each in ranges.items()}
    state = made(first).state()
    for name, each in ranges.items():
        for value in each.ends:
            other = made({**first, name: value})
            if config.tune.scheduler == "asha":
                continue
            try:
                other.restore(*state)
            except (RuntimeError, ValueError) as error:
                raise InputError(
                    f"option {name!r} cannot change while a search goes on, as 'pbt' has it; set it in search.options, "
                    "or take 'asha'"
                ) from error


def _drive(directory: TuningDirectory, problem: Problem, progress: Progress) -> TuningResult:
    """Drive a tuning to its end."""
    best = None
    try:
        with driving(directory, progress, directory.config().storage) as (clock, stop):
            trials = ranked(_trials(directory, problem, progress, clock, stop))
            if trials:
                best = directory.best_file
                write_atomically(best, directory.config().of_search(trials[0].options).to_yaml().encode())
            clock.set("done", "done")
    except RunStoppedError:
        return TuningResult(directory.path, ranked(directory.records()), None, stopped=True)
    return TuningResult(directory.path, trials, best)


def _trials(
    directory: TuningDirectory, problem: Problem, progress: Progress, clock: RunClock, stop: StopSignal
) -> list[TrialRecord]:
    config = directory.config()
    if not problem.trained:
        clock.set("running", "baseline")
        progress.stage(f"Baseline: training {config.model.name} on {config.data.name}")
        problem = problem.with_baseline(lambda report: progress.epoch("baseline", report), stop.check)
        stop.check()
    if not directory.baseline_file.exists():
        write_atomically(directory.baseline_file, problem.saved())
    clock.set("running", "trials")
    progress.stage(f"Tuning {config.search.algorithm}: {config.tune.trials} trials")
    imports_from = directory.info().working_directory
    with ray_session(cpus_of(config.search), modules=modules_of(config, imports_from)) as scratch:
        from automl.orchestration.crew import evaluator_pool  # Ray reads its environment when it is imported
        from automl.orchestration.tuning import run_tuning

        with evaluator_pool(config, directory.baseline_file, imports_from, problem.constraints) as pool:
            return run_tuning(config, problem, pool, directory, progress, clock, stop, scratch)
