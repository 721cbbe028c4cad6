"""The searches of a run as Optuna studies, for optuna-dashboard. They are written, never read: the record is ours."""

import warnings
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automl.cache import atomic_path
from automl.config import Config
from automl.configured import search_space, untrained_graph
from automl.run.directory import RunDirectory, make_importable
from automl.run.limits import read_limits
from automl.run.store import EvaluationRow, Store
from search_spaces.errors import InputError
from search_spaces.objective import Evaluation
from search_spaces.space import SearchSpace

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

ACCURACY = "accuracy"
FRONTS = ("nsga2", "optuna_nsga2")
"""Algorithms whose result is a front of accuracy and costs."""


def write_study(directory: RunDirectory, path: Path) -> Path:
    """Write every search of a run to a file of Optuna's journal: `optuna-dashboard FILE` opens it.

    A trial's parameters are the decisions by name, its values the accuracy and, where a front is looked for, the costs,
    its constraints the budgets, a budget being kept at or below 0. What was evaluated on a part of the images is left
    out: its accuracy does not compare.

    Args:
        directory: of the run, whose record may be growing meanwhile.
        path: of the file, replaced when all is written.

    Returns:
        The path.

    Raises:
        InputError: the run has no record yet, or its config's network cannot be made.
    """
    import optuna
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.study import StudyDirection

    if not directory.store_file.exists():
        raise InputError(f"{str(directory.path)!r} has no evaluations yet; try again when its search has begun")
    make_importable(directory.info().working_directory)
    config = directory.config()
    space = search_space(config, untrained_graph(config))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    store = Store.read(directory.store_file)
    trials = Trials(config, space, read_limits(directory.path), store)
    try:
        with atomic_path(path) as temporary:
            storage = JournalStorage(JournalFileBackend(str(temporary)))
            for row in store.searches():
                study = optuna.create_study(
                    storage=storage,
                    study_name=f"{directory.path.resolve().name} {row.name}",
                    directions=[StudyDirection.MAXIMIZE, *[StudyDirection.MINIMIZE] * len(trials.costs)],
                )
                with warnings.catch_warnings():  # of what Optuna calls experimental
                    warnings.simplefilter("ignore", ExperimentalWarning)
                    study.set_metric_names([ACCURACY, *trials.costs])
                study.add_trials(trials.of(row.name))
    finally:
        store.close()
    return path


class Trials:
    """The evaluations of a run's searches as Optuna's trials.

    Args:
        config: of the run.
        space: what it decides.
        limits: of its budgets, by metric.
        store: its record.
    """

    def __init__(self, config: Config, space: SearchSpace, limits: Mapping[str, float], store: Store) -> None:
        from optuna.distributions import CategoricalDistribution

        how = config.search
        self.costs = list(how.objectives) or ([config.cost_metric] if how.algorithm in FRONTS else [])
        """Metrics that are values beside the accuracy."""
        self._space = space
        self._limits = limits
        self._store = store
        self._distributions = {
            decision.name: CategoricalDistribution([_shown(choice) for choice in decision.choices])
            for decision in space.decisions
        }

    def of(self, search: str) -> Iterator["FrozenTrial"]:
        """Of a search, in order."""
        from optuna.trial import TrialState, create_trial

        ended = {row.number: row.finished_at for row in self._store.figures(search)}
        for row in self._store.evaluations(search):
            found = row.evaluation
            if found.share < 1.0 or row.number not in ended:
                continue
            params = self._params(row)
            failed = found.error is not None
            noted = {"number": row.number, "cost": dict(found.cost), "reward": row.reward, "error": found.error}
            trial = create_trial(
                state=TrialState.FAIL if failed else TrialState.COMPLETE,
                values=None if failed else [found.accuracy, *(found.cost[metric] for metric in self.costs)],
                params=params,
                distributions={name: self._distributions[name] for name in params},
                user_attrs={key: value for key, value in noted.items() if value is not None},
                system_attrs={"constraints": self._constraints(found)},  # where optuna-dashboard looks for them
            )
            trial.datetime_complete = datetime.fromtimestamp(ended[row.number])
            trial.datetime_start = trial.datetime_complete - timedelta(seconds=found.seconds)
            yield trial

    def _params(self, row: EvaluationRow) -> dict[str, Any]:
        """The decisions by name; none of a policy that is not of the space, such as one that was given."""
        try:
            point = self._space.encode(row.policy)
        except InputError:
            return {}
        decisions = zip(self._space.decisions, point.tolist(), strict=True)
        return {decision.name: _shown(decision.choices[number]) for decision, number in decisions}

    def _constraints(self, found: Evaluation) -> list[float]:
        """How far each cost is above its limit, relative to it; the greatest of that where limits are not known."""
        if not self._limits.keys() <= found.cost.keys() or not self._limits:
            return [found.violation]
        return [found.cost[metric] / limit - 1.0 for metric, limit in self._limits.items()]


def _shown(choice: Any) -> bool | int | float | str | None:
    """A choice as Optuna keeps one: "2:4 0.5" of a pattern and a share, "12x14" of a resolution."""
    if not isinstance(choice, tuple | list):
        return choice  # type: ignore[no-any-return]
    return ("x" if all(isinstance(part, int) for part in choice) else " ").join(map(str, choice))
