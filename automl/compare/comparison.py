"""How search algorithms did over the runs that tried them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from automl.compare.runs import Run, Search, read_runs, searches_of
from automl.compare.statistics import Difference, Quartiles, paired_difference
from automl.errors import InputError
from automl.report.data import Point
from automl.run.directory import write_json
from search_spaces.objective import hypervolume, pareto_front


@dataclass(frozen=True, slots=True)
class Standing:
    """What an algorithm came to under one budget.

    Attributes:
        name: the algorithm, with the settings that set it apart where it was run under several.
        searches: one for each seed, by seed.
        best: search accuracy of the best feasible policy of each seed.
        test_accuracy: of the policy that was best of all by search accuracy; None where it is not known.
        evaluations, seconds: of a seed, the median; see `automl.compare.runs.Search`.
        hypervolume: of each seed's feasible policies, see `Contest`.
        difference: to the best algorithm; None for that one, and where no seeds pair up.
    """

    name: str
    searches: Sequence[Search]
    best: Quartiles
    test_accuracy: float | None
    evaluations: float
    seconds: float
    hypervolume: Quartiles
    difference: Difference | None = None

    @property
    def seedless(self) -> bool:
        """Whether the algorithm proposes the same under every seed."""
        return self.searches[0].seedless

    @property
    def unfinished(self) -> int:
        """Seeds that are not done with their evaluations."""
        return sum(not search.finished for search in self.searches)


@dataclass(frozen=True, slots=True)
class Contest:
    """The algorithms that were run under one budget.

    Attributes:
        budget: as it was asked for.
        reference: (cost, accuracy) that hypervolumes are counted from: the budget's limit where it is known, else the
            largest feasible cost; and 0, or for a metric that is no share the least accuracy of all.
        ideal: accuracy at cost 0 that has hypervolume 1: a share of 1, or the largest accuracy of all.
        standings: from the best median down.
    """

    budget: str
    reference: tuple[float, float]
    ideal: float
    standings: Sequence[Standing]

    @property
    def unequal(self) -> bool:
        """Whether algorithms made different numbers of evaluations; those that make one by nature aside."""
        return len({each.evaluations for each in self.standings if not each.seedless}) > 1


@dataclass(frozen=True, slots=True)
class Placed:
    """A point of the Pareto front over all runs, and where it comes from."""

    point: Point
    search: Search


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs, compared.

    Attributes:
        runs: that were read.
        contests: one for each budget, from the largest limit down.
        front: the evaluations, feasible or not, that no other one beats, by rising cost.
        repeated: searches that stood in several runs, and were counted once.
    """

    runs: Sequence[Run]
    contests: Sequence[Contest]
    front: Sequence[Placed]
    repeated: int

    def to_json(self) -> dict[str, Any]:
        """All figures, JSON-ready; what is not known, or not reached by so many seeds, is null."""
        first = self.runs[0].data
        return {
            "runs": [str(run.path) for run in self.runs],
            "metric": first.metric_name,
            "cost_metric": first.cost_metric,
            "budgets": [
                {
                    "budget": contest.budget,
                    "reference": {"cost": contest.reference[0], "accuracy": contest.reference[1]},
                    "algorithms": [_standing_json(standing, contest) for standing in contest.standings],
                }
                for contest in self.contests
            ],
            "front": [
                {
                    "cost": placed.point.cost,
                    "accuracy": placed.point.accuracy,
                    "feasible": placed.point.feasible,
                    "algorithm": placed.search.algorithm,
                    "seed": placed.search.seed,
                    "run": str(placed.search.run.path),
                    "number": placed.point.number,
                }
                for placed in self.front
            ],
            "repeated": self.repeated,
        }


def compare(paths: Sequence[Path]) -> Comparison:
    """Compare runs, finished or not.

    Args:
        paths: run directories, or directories of them.

    Raises:
        InputError: one is no run or is damaged, they do not compare, or nothing was evaluated yet.
    """
    runs = read_runs(paths)
    every = [search for run in runs for search in searches_of(run)]
    if not any(search.points for search in every):
        raise InputError(f"there is no evaluation to compare yet in {', '.join(repr(str(run.path)) for run in runs)}")
    groups: dict[str, list[tuple[str, Search]]] = {}
    for name, search in zip(_names(every), every, strict=True):
        groups.setdefault(search.run.budget, []).append((name, search))
    contests = [_contest(budget, group) for budget, group in groups.items()]
    contests.sort(key=lambda contest: -contest.reference[0])
    placed = [Placed(point, search) for search in every for point in search.points]
    front = pareto_front((each.point.cost, each.point.accuracy) for each in placed)
    counted = sum(len(standing.searches) for contest in contests for standing in contest.standings)
    return Comparison(runs, contests, [placed[index] for index in front], len(every) - counted)


def write_figures(comparison: Comparison, path: Path) -> Path:
    """Write all figures as JSON; InputError where the file cannot be written."""
    try:
        write_json(path, comparison.to_json())
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written: {error.strerror}") from None
    return path


def _contest(budget: str, named: Sequence[tuple[str, Search]]) -> Contest:
    searches = [search for _, search in named]
    data = searches[0].run.data
    points = [point for search in searches for point in search.points]
    limits = {search.run.data.limit for search in searches} - {None}
    reach = max((limit for limit in limits if limit is not None), default=None)
    if reach is None:
        reach = max((point.cost for point in points if point.feasible), default=0.0)
    values = [point.accuracy for point in points] or [0.0]
    reference, ideal = (reach, 0.0 if data.shares else min(values)), 1.0 if data.shares else max(values)
    standings = [_standing(name, group, reference, ideal) for name, group in _by_name(named).items()]
    standings.sort(key=lambda each: (-each.best.median, -each.hypervolume.median, each.name))
    best, *others = standings
    ranked = [best, *(replace(each, difference=paired_difference(best.searches, each.searches)) for each in others)]
    return Contest(budget, reference, ideal, ranked)


def _standing(name: str, searches: Sequence[Search], reference: tuple[float, float], ideal: float) -> Standing:
    tests = {found for search in searches if (found := search.run.test_accuracy(search.algorithm)) is not None}
    return Standing(
        name=name,
        searches=searches,
        best=Quartiles.of([search.best for search in searches]),
        test_accuracy=max(tests)[1] if tests else None,
        evaluations=Quartiles.of([search.evaluations for search in searches]).median,
        seconds=Quartiles.of([search.seconds for search in searches]).median,
        hypervolume=Quartiles.of([_share_of_box(search, reference, ideal) for search in searches]),
    )


def _share_of_box(search: Search, reference: tuple[float, float], ideal: float) -> float:
    """Hypervolume of a search's feasible policies, as a share of what (cost 0, ideal accuracy) has."""
    box = reference[0] * (ideal - reference[1])
    found = hypervolume(((point.cost, point.accuracy) for point in search.points if point.feasible), reference)
    return found / box if box > 0.0 else 0.0


def _by_name(named: Sequence[tuple[str, Search]]) -> dict[str, list[Search]]:
    """The searches of each name by seed.

    A search that stands in several runs, as random search beside each algorithm does, is taken from where it is
    longest.
    """
    chosen: dict[str, dict[int, Search]] = {}
    for name, search in named:
        group = chosen.setdefault(name, {})
        if search.seed not in group or search.evaluations > group[search.seed].evaluations:
            group[search.seed] = search
    return {name: [group[seed] for seed in sorted(group)] for name, group in chosen.items()}


def _names(searches: Sequence[Search]) -> list[str]:
    """Each search's algorithm, with the settings that set it apart where it was run under several."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for search in searches:
        known = kinds.setdefault(search.algorithm, [])
        if search.settings not in known:
            known.append(search.settings)
    telling = {algorithm: _differing(known) for algorithm, known in kinds.items()}
    return [", ".join([search.algorithm, *_said(search.settings, telling[search.algorithm])]) for search in searches]


def _differing(kinds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys whose values differ."""
    keys = dict.fromkeys(key for kind in kinds for key in kind)
    return [key for key in keys if any(kind.get(key) != kinds[0].get(key) for kind in kinds)]


def _said(settings: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    return [f"{key.rpartition('.')[2]} {settings[key]}" for key in keys if key in settings]


def _standing_json(standing: Standing, contest: Contest) -> dict[str, Any]:
    best, difference = contest.standings[0], standing.difference
    return {
        "name": standing.name,
        "algorithm": standing.searches[0].algorithm,
        "best": _quartiles_json(standing.best),
        "by_seed": {str(search.seed): _known(search.best) for search in standing.searches},
        "unfinished": standing.unfinished,
        "test_accuracy": standing.test_accuracy,
        "evaluations": standing.evaluations,
        "seconds": standing.seconds,
        "hypervolume": _quartiles_json(standing.hypervolume),
        "difference": None if difference is None else {"to": best.name, **asdict(difference)},
    }


def _quartiles_json(quartiles: Quartiles) -> dict[str, float | None]:
    return {name: _known(value) for name, value in asdict(quartiles).items()}


def _known(value: float) -> float | None:
    return value if isfinite(value) else None
