"""Runs as they are compared: which ones compare at all, and the searches that they made."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from statistics import median
from typing import Any

from automl.config_sections import BudgetSection
from automl.errors import InputError
from automl.report import units
from automl.report.data import Effort, Point, RunData, read_run
from automl.report.figures import cost_text
from automl.report.method import metric_label
from automl.run.store import SearchRow
from search_spaces.objective import MODELLED, SHARE_ROUNDING
from search_spaces.sections import shown

SEEDLESS = ("uniform", "given")
"""Algorithms that propose the same under every seed, and are run once."""
ACCURACY = (None, "accuracy", "top1")
"""Names of one metric."""
ELSEWHERE = {"workers", "device"}
"""What of a training changes where it runs, and not what it comes to."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory and what it says."""

    path: Path
    data: RunData

    @property
    def budget(self) -> str:
        """The budgets as they were asked for, for people; runs of the same ones are ranked among each other."""
        return " and ".join(map(_budget_text, self.data.config.budgets)) or "no budget"

    def test_accuracy(self, algorithm: str) -> tuple[float, float] | None:
        """(search accuracy, test accuracy) of the best policy that an algorithm found here, None where not known."""
        name = "best" if algorithm == self.data.config.search.algorithm else algorithm
        found = self.data.finalist(name)
        if found is None or found.feasible is False or found.accuracy is None or found.search_accuracy is None:
            return None
        return found.search_accuracy, found.accuracy


@dataclass(frozen=True, slots=True)
class Improvement:
    """A feasible policy that was better than all before it, and what had been spent by then, itself included."""

    evaluations: float
    seconds: float
    value: float


@dataclass(frozen=True, slots=True)
class Search:
    """One search of a run.

    Attributes:
        run: that it belongs to.
        algorithm, seed: which.
        settings: what else decides what it finds, by key.
        finished: whether it made all its evaluations, or stopped of its own accord.
        planned: evaluations that it was to make at most.
        evaluations: that it cost, in whole ones by the images that were forwarded (see `whole_images`).
        seconds: that evaluations took one after the other, and the searcher's thinking.
        improvements: by rising number of evaluations.
        points: the evaluations on all validation images that did not fail.
        stopped: whether it ended by itself, before it had made all its evaluations.

    Of evaluations and seconds those that failed, or saw a part of the images, are included.
    """

    run: Run
    algorithm: str
    seed: int
    settings: Mapping[str, Any]
    finished: bool
    planned: int
    evaluations: float
    seconds: float
    improvements: Sequence[Improvement]
    points: Sequence[Point]
    stopped: bool = False

    @property
    def best(self) -> float:
        """Accuracy of the best feasible policy; minus infinity where there is none."""
        return self.improvements[-1].value if self.improvements else -inf

    @property
    def seedless(self) -> bool:
        """Whether the seed changes nothing."""
        return self.algorithm in SEEDLESS


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read run directories, finished or not, and directories of them.

    Raises:
        InputError: one is no run, is damaged, or cannot be compared with the others.
    """
    read = _read(paths)
    for other in read[1:]:
        _require_comparable(read[0], other)
    return read


def comparable(paths: Sequence[Path]) -> list[list[Run]]:
    """Read run directories as `read_runs` does, apart where they do not compare with each other.

    Raises:
        InputError: one is no run or is damaged.
    """
    groups: list[list[Run]] = []
    for run in _read(paths):
        group = next((each for each in groups if not _differing(each[0], run)), None)
        if group is None:
            groups.append(group := [])
        group.append(run)
    return groups


def _read(paths: Sequence[Path]) -> list[Run]:
    runs: dict[Path, Path] = {}
    for path in (found for given in paths for found in _run_directories(given)):
        runs.setdefault(path.resolve(), path)
    return [Run(path, read_run(path)) for path in runs.values()]


def whole_images(runs: Sequence[Run]) -> float:
    """Images that an evaluation on all validation images forwards: the median over the runs, 0 where none is known.

    Calibration is among them, so they need not be the same for all policies, nor under all compression settings.
    """
    efforts = (effort for run in runs for search in run.data.efforts.values() for effort in search.values())
    images = [effort.images for effort in efforts if effort.share == 1.0 and effort.images]
    return median(images) if images else 0.0


def searches_of(run: Run, whole: float) -> Iterator[Search]:
    """The searches of a run that have begun.

    Args:
        run: see there.
        whole: see `whole_images`.

    Raises:
        InputError: an evaluation has a figure that is none.
    """
    points: dict[str, dict[int, Point]] = {}
    for point in run.data.points:
        if not all(map(isfinite, (point.accuracy, point.cost, *point.costs.values()))):
            raise _damaged(run, point.search, point.number)
        points.setdefault(point.search, {})[point.number] = point
    for row in run.data.searches:
        efforts = run.data.efforts.get(row.name)
        if efforts:
            yield _search(run, row, points.get(row.name, {}), efforts, whole)


def _search(
    run: Run, row: SearchRow, points: Mapping[int, Point], efforts: Mapping[int, Effort], whole: float
) -> Search:
    best, spent, cost, seconds = -inf, 0.0, 0.0, 0.0
    improvements = []
    for number, effort in sorted(efforts.items()):
        if not (
            isfinite(effort.seconds) and effort.seconds >= 0.0 and effort.images >= 0 and 0.0 < effort.share <= 1.0
        ):
            raise _damaged(run, row.name, number)
        spent += effort.share
        cost += effort.images / whole if whole and effort.images else effort.share
        seconds += effort.seconds
        point = points.get(number)
        if point is not None and point.feasible and point.accuracy > best:
            best = point.accuracy
            improvements.append(Improvement(cost, seconds, best))
    return Search(
        run=run,
        algorithm=row.algorithm,
        seed=row.seed,
        settings=_settings(run, row),
        finished=row.finished or spent >= row.evaluations - SHARE_ROUNDING,
        planned=row.evaluations,
        evaluations=cost,
        seconds=seconds,
        improvements=improvements,
        points=list(points.values()),
        stopped=row.stopped(spent),
    )


def _settings(run: Run, row: SearchRow) -> dict[str, Any]:
    """What decides what a search finds beside its seed: two that agree in it are tries of the same."""
    config = run.data.config
    if row.algorithm == "given":
        return {"run": str(run.path)}
    settings = {**_flat("space", config.space.model_dump()), **_flat("compression", config.compression.model_dump())}
    if row.algorithm not in SEEDLESS:
        settings["evaluations"] = row.evaluations
    if row.algorithm == config.search.algorithm:
        apart = {"algorithm", "seeds", "evaluations", "evaluators", "device", "dashboard"}
        settings |= _flat("search", config.search.model_dump(exclude=apart))
    return settings


def _run_directories(path: Path) -> list[Path]:
    """The path itself where it is a run, else the runs right below it."""
    if not path.is_dir() or (path / "run.json").exists():
        return [path]
    below = sorted(found.parent for found in path.glob("*/run.json"))
    return below or [path]  # which is then refused as what it is


def _require_comparable(one: Run, other: Run) -> None:
    """InputError where accuracies or costs of the two mean different things, with what differs."""
    here, there = _essence(one.data), _essence(other.data)
    if differing := _differing(one, other):
        what = "; ".join(f"{key} is {shown(here.get(key))} and {shown(there.get(key))}" for key in differing)
        raise InputError(
            f"runs of different problems do not compare: in {str(one.path)!r} and {str(other.path)!r} {what}"
        )


def _differing(one: Run, other: Run) -> list[str]:
    """Keys of what decides what accuracies and costs mean, where the two runs differ in it."""
    here, there = _essence(one.data), _essence(other.data)
    differing = [key for key in {**here, **there} if here.get(key) != there.get(key)]
    if "budget.metric" in differing:  # each metric has devices of its own
        return [key for key in differing if not key.startswith("measure.")]
    return differing


def _essence(data: RunData) -> dict[str, Any]:
    """What decides what an accuracy and a cost mean."""
    config, measure = data.config, data.config.measure
    essence = {**_flat("model", config.model.model_dump()), **_flat("data", config.data.model_dump())}
    essence["metric"] = "accuracy" if config.metric in ACCURACY else config.metric
    essence["budget.metric"] = data.cost_metric
    if config.model.checkpoint is None:
        essence |= _flat("baseline", config.baseline.model_dump(exclude=ELSEWHERE))
    if {*data.objectives, *(budget.metric for budget in data.budgets)} & {*MODELLED}:
        essence |= _flat("measure", {"accelerator": measure.accelerator})
    if data.cost_metric == "latency_s":
        essence |= {"measure.backend": measure.backend, "measure.threads": measure.threads}
        device = measure.device
        essence |= _flat("measure.device", None if device is None else device.model_dump(include={"key", "target"}))
    return essence


def _budget_text(asked: BudgetSection) -> str:
    label = metric_label(asked.metric)
    if asked.ratio is not None:
        return f"{units.plain(100 * asked.ratio)} % of the {label}"
    return f"at most {cost_text(asked.metric)(asked.limit or 0.0)} {label}"


def _flat(name: str, value: Any) -> dict[str, Any]:
    """Nested mappings as one, by dotted keys."""
    if not isinstance(value, Mapping):
        return {name: value}
    return {key: item for inner in value for key, item in _flat(f"{name}.{inner}", value[inner]).items()}


def _damaged(run: Run, search: str, number: int) -> InputError:
    return InputError(f"{str(run.path)!r} is damaged: evaluation {number} of {search!r} has a figure that is none")
