"""How search algorithms did over the runs that tried them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import isfinite, prod
from pathlib import Path
from typing import Any

from automl.compare.runs import Run, Search, comparable, read_runs, searches_of, whole_images
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
        evaluations, seconds: that a seed cost, the median; see `automl.compare.runs.Search`.
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

    @property
    def stopped(self) -> int:
        """Seeds that ended by themselves before they had made all of them."""
        return sum(search.stopped for search in self.searches)


@dataclass(frozen=True, slots=True)
class Contest:
    """The algorithms that were run under one budget, or the same ones.

    Attributes:
        budget: as it was asked for.
        reference: (cost, ..., accuracy) that hypervolumes are counted from: of each objective the budget's limit where
            there is a known one, else the largest feasible cost; and 0, or for a metric that is no share the least
            accuracy of all.
        ideal: accuracy at no cost that has hypervolume 1: a share of 1, or the largest accuracy of all.
        standings: from the best median down.
    """

    budget: str
    reference: tuple[float, ...]
    ideal: float
    standings: Sequence[Standing]

    @property
    def unequal(self) -> bool:
        """Whether algorithms were allowed different numbers of evaluations; those that make one by nature aside."""
        return len({search.planned for each in self.standings if not each.seedless for search in each.searches}) > 1


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
        objectives: costs that are minimised beside the accuracy, in any of the runs.
        contests: one for each budget, from the largest limit down.
        front: the evaluations, feasible or not, that no other one beats, by rising cost in the first objective.
        repeated: searches that stood in several runs, and were counted once.
    """

    runs: Sequence[Run]
    objectives: Sequence[str]
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
            "objectives": list(self.objectives),
            "budgets": [
                {
                    "budget": contest.budget,
                    "reference": {
                        "costs": dict(zip(self.objectives, contest.reference, strict=False)),
                        "accuracy": contest.reference[-1],
                    },
                    "algorithms": [_standing_json(standing, contest) for standing in contest.standings],
                }
                for contest in self.contests
            ],
            "front": [
                {
                    "cost": placed.point.cost,
                    "costs": dict(placed.point.costs),
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
    return _compared(read_runs(paths))


def compare_apart(paths: Sequence[Path]) -> list[Comparison]:
    """Compare runs, each with those that it compares with: the cells of a sweep over devices are several comparisons.

    Runs without an evaluation are left out. Raises as `compare`.
    """
    groups = comparable(paths)
    found = [_compared(group) for group in groups if any(run.data.points for run in group)]
    return found or [_compared(groups[0])]  # which says that there is nothing yet


def _compared(runs: Sequence[Run]) -> Comparison:
    whole = whole_images(runs)
    every = [search for run in runs for search in searches_of(run, whole)]
    if not any(search.points for search in every):
        raise InputError(f"there is no evaluation to compare yet in {', '.join(repr(str(run.path)) for run in runs)}")
    groups: dict[str, list[tuple[str, Search]]] = {}
    for name, search in zip(_names(every), every, strict=True):
        groups.setdefault(search.run.budget, []).append((name, search))
    objectives = _objectives(every)
    contests = [_contest(budget, group, objectives) for budget, group in groups.items()]
    contests.sort(key=lambda contest: -contest.reference[0])
    placed = [Placed(point, search) for search in every for point in search.points]
    front = pareto_front([each.point.objectives(objectives) for each in placed])
    counted = sum(len(standing.searches) for contest in contests for standing in contest.standings)
    return Comparison(runs, objectives, contests, [placed[index] for index in front], len(every) - counted)


def write_figures(comparison: Comparison, path: Path) -> Path:
    """Write all figures as JSON; InputError where the file cannot be written."""
    try:
        write_json(path, comparison.to_json())
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written: {error.strerror}") from None
    return path


def _objectives(searches: Sequence[Search]) -> list[str]:
    """The costs that any of the runs minimises and all evaluations tell, the one that runs are compared by first."""
    asked = [search.run.data.objectives for search in searches]
    every = dict.fromkeys([searches[0].run.data.cost_metric, *(metric for each in asked for metric in each)])
    wanted = [metric for metric in every if any(metric in each for each in asked)]
    return [metric for metric in wanted if all(metric in point.costs for each in searches for point in each.points)]


def _contest(budget: str, named: Sequence[tuple[str, Search]], objectives: Sequence[str]) -> Contest:
    searches = [search for _, search in named]
    data = searches[0].run.data
    points = [point for search in searches for point in search.points]
    feasible = [point for point in points if point.feasible]
    reach = []
    for metric in objectives:
        limits = [search.run.data.limits[metric] for search in searches if metric in search.run.data.limits]
        reach.append(max(limits or [point.costs[metric] for point in feasible] or [0.0]))
    values = [point.accuracy for point in points] or [0.0]
    reference, ideal = (*reach, 0.0 if data.shares else min(values)), 1.0 if data.shares else max(values)
    volumes = partial(_share_of_box, objectives=objectives, reference=reference, ideal=ideal)
    standings = [_standing(name, group, volumes) for name, group in _by_name(named).items()]
    standings.sort(key=lambda each: (-each.best.median, -each.hypervolume.median, each.name))
    best, *others = standings
    ranked = [best, *(replace(each, difference=paired_difference(best.searches, each.searches)) for each in others)]
    return Contest(budget, reference, ideal, ranked)


def _standing(name: str, searches: Sequence[Search], volume: Callable[[Search], float]) -> Standing:
    tests = {found for search in searches if (found := search.run.test_accuracy(search.algorithm)) is not None}
    return Standing(
        name=name,
        searches=searches,
        best=Quartiles.of([search.best for search in searches]),
        test_accuracy=max(tests)[1] if tests else None,
        evaluations=Quartiles.of([search.evaluations for search in searches]).median,
        seconds=Quartiles.of([search.seconds for search in searches]).median,
        hypervolume=Quartiles.of([volume(search) for search in searches]),
    )


def _share_of_box(search: Search, objectives: Sequence[str], reference: Sequence[float], ideal: float) -> float:
    """Hypervolume of a search's feasible policies, as a share of what the ideal accuracy at no cost has."""
    box = prod(reference[:-1]) * (ideal - reference[-1])
    front = [point.objectives(objectives) for point in search.points if point.feasible]
    kept = [front[index] for index in pareto_front(front)]  # hypervolumes of many points of many objectives take long
    return hypervolume(kept, reference) / box if box > 0.0 else 0.0


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
        "stopped": standing.stopped,
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
