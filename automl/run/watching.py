"""What is to be seen of a run while it runs: its status, and how its searches go. Nothing heavy is loaded."""

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from automl.run.directory import RunDirectory
from automl.run.limits import read_limits
from automl.run.status import run_status
from automl.run.store import FiguresRow, Store

RATE_OVER_S = 60.0
LAST = 8
"""Evaluations that are shown one by one."""

RECENT = 10_000
"""Evaluations of a search that the rate is counted from at most."""


@dataclass
class SearchView:
    """How a search goes, as far as it has been read: without gaps, from its first evaluation on.

    Attributes:
        row: as `automl.run.store.Store.overview` has it.
        read: evaluations that were read.
        rises: (number, accuracy) of each evaluation that was the best feasible one so far.
        best: the last of them.
        recent: the newest evaluations.
    """

    row: Mapping[str, Any]
    read: int = 0
    rises: list[tuple[int, float]] = field(default_factory=list)
    best: FiguresRow | None = None
    recent: deque[FiguresRow] = field(default_factory=lambda: deque(maxlen=RECENT))

    @property
    def feasible_share(self) -> float | None:
        """Of the whole evaluations that did not fail, those within all budgets; None before there is one."""
        return self.row["feasible"] / self.row["whole"] if self.row["whole"] else None

    def add(self, evaluations: Iterable[FiguresRow]) -> None:
        """Read on."""
        for each in evaluations:
            if each.number != self.read:  # one that others have overtaken is waited for
                return
            self.read += 1
            self.recent.append(each)
            if each.evaluation.feasible and (
                self.best is None or each.evaluation.accuracy > self.best.evaluation.accuracy
            ):
                self.best = each
                self.rises.append((each.number, each.evaluation.accuracy))

    def curve(self, columns: int) -> list[float | None]:
        """The best feasible accuracy so far, at so many evaluations at most, evenly spread, the last one included."""
        columns = min(columns, self.read)
        found: list[float | None] = []
        rises, best = iter(self.rises), None
        rise = next(rises, None)
        for column in range(columns):
            number = (column + 1) * self.read // columns - 1
            while rise is not None and rise[0] <= number:
                best, rise = rise[1], next(rises, None)
            found.append(best)
        return found


@dataclass(frozen=True)
class RunView:
    """A run at a glance.

    Attributes:
        status: see `automl.run.status.run_status`.
        limits: of the budgets, by metric.
        searches: by name.
        rate: evaluations a second over the last minute.
        last: the newest evaluation first.
    """

    status: Mapping[str, Any]
    limits: Mapping[str, float]
    searches: Sequence[SearchView]
    rate: float
    last: Sequence[FiguresRow]

    @property
    def over(self) -> bool:
        """Whether nobody drives the run any more."""
        return bool(self.status["state"] != "running")

    @property
    def searching(self) -> bool:
        """Whether policies are being evaluated."""
        return not self.over and bool(self.status["stage"] == "search")


class RunWatch:
    """Looks at a run again and again, and reads of its record only what is new.

    Args:
        directory: of the run.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        self._searches: dict[str, SearchView] = {}

    def look(self) -> RunView:
        """The run as it stands.

        Raises:
            InputError: the directory is none of a run, or a file in it cannot be read.
        """
        status = run_status(self._directory)
        if status["searches"]:
            self._read(status["searches"])
        views = [self._searches[row["name"]] for row in status["searches"]]
        newest = sorted((each for view in views for each in view.recent), key=lambda each: each.finished_at)
        return RunView(status, read_limits(self._directory.path), views, rate(newest), newest[: -LAST - 1 : -1])

    def _read(self, rows: Sequence[Mapping[str, Any]]) -> None:
        store = Store.read(self._directory.store_file)
        try:
            for row in rows:
                view = self._searches.get(row["name"])
                if view is None or row["count"] < view.read:  # failures were forgotten
                    view = self._searches[row["name"]] = SearchView(row)
                view.row = row
                view.add(store.figures(row["name"], view.read))
        finally:
            store.close()


def rate(evaluations: Sequence[FiguresRow], now: float | None = None) -> float:
    """Evaluations a second over the last minute, or since the first of them where that is less.

    Args:
        evaluations: the newest last.
        now: seconds since 1970; by default the clock's.
    """
    now = time.time() if now is None else now
    recent = [each.finished_at for each in evaluations if now - each.finished_at <= RATE_OVER_S]
    if len(recent) < 2:
        return 0.0
    since = RATE_OVER_S if len(recent) < len(evaluations) else max(now - recent[0], 1.0)
    return len(recent) / since
