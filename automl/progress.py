"""What a run shows while it works: bars in a terminal, a plain line now and then elsewhere. Written to stderr."""

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from automl.run.store import STOPPED, stopped_early

if TYPE_CHECKING:
    from automl.orchestration.dispatcher import SearchProgress
    from automl.training import EpochReport
    from search_spaces.objective import Constraint

PLAIN_EVERY_S = 5.0
TASKS, SEPARATOR = "  ", " | "
"""A line of tasks begins with the first, and the second stands between two."""

TASK = re.compile(r"(?P<name>.+?) (?P<done>\d+)/(?P<total>\d+)(?: (?P<note>.*))?")
STAGE = re.compile(r"[A-Z][\w ]*: ")
"""How the line of a stage begins, and hardly any other."""


class Progress:
    """Shows stages, and tasks with a number of steps; a context manager.

    Args:
        console: where to; by default stderr.
        quiet: show nothing.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self._console = console or Console(stderr=True, quiet=quiet, highlight=False)
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._plain: dict[str, str] = {}
        self._shown: dict[str, str] = {}
        self._last = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.quiet:
            self._bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}"),
                console=self._console,
            )
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def stage(self, text: str) -> None:
        """A new stage begins: one line, and the tasks of the last stage are done with."""
        self._flush(force=True)
        if self._bars is not None:
            for task in self._tasks.values():
                self._bars.stop_task(task)
                self._bars.update(task, visible=False)
        self._tasks.clear()
        self._plain.clear()
        self._shown.clear()
        self.say(text)

    def say(self, text: str) -> None:
        """One line."""
        self._console.print(Text(text), soft_wrap=True)

    def update(self, task: str, done: int, total: int, note: str = "") -> None:
        """A task of the stage stands at `done` of `total`."""
        if self._bars is None:
            self._plain[task] = f"{task} {done}/{total} {note}".rstrip()  # what `TASK` reads
            self._flush()
            return
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=total, note=note)
        self._bars.update(self._tasks[task], completed=done, total=total, note=note)

    def operators(self, done: int, total: int, left_s: float) -> None:
        """So many of the operators that the latency table lacks have been measured."""
        self.update("operators of the latency table", done, total, f"{left_s:.0f} s left" if done < total else "")

    def epoch(self, task: str, report: "EpochReport") -> None:
        """A network has been trained for another epoch."""
        self.update(task, report.epoch, report.epochs, report.note)

    def searches(self, rows: Sequence["SearchProgress"], constraint: "Constraint") -> None:
        """How far the searches are."""
        for row in rows:
            self.update(row.name, int(row.done + 1e-6), row.total, search_note(row, constraint))

    def _flush(self, *, force: bool = False) -> None:
        news = [text for task, text in self._plain.items() if self._shown.get(task) != text]
        if not news or (not force and time.monotonic() - self._last < PLAIN_EVERY_S):
            return
        self._last = time.monotonic()
        self._shown.update(self._plain)
        self.say(TASKS + SEPARATOR.join(news))


def read_plain(text: str) -> tuple[str, dict[str, tuple[int, int, str]]]:
    """What `Progress` wrote where there is no terminal, read back.

    Args:
        text: all that was written so far, other lines among it.

    Returns:
        The line that the last stage began with, and done, total and note of each of its tasks, as last told.
    """
    stage = ""
    tasks: dict[str, tuple[int, int, str]] = {}
    for line in text.splitlines():
        if not line.startswith(TASKS):
            if STAGE.match(line):
                stage, tasks = line, {}
            continue
        for told in line[len(TASKS) :].split(SEPARATOR):
            if found := TASK.fullmatch(told):
                tasks[found["name"]] = (int(found["done"]), int(found["total"]), found["note"] or "")
    return stage, tasks


def search_note(row: "SearchProgress", constraint: "Constraint") -> str:
    """The best of a search so far, in a few words."""
    notes = []
    if row.best_accuracy is not None and constraint.metric in row.best_costs:
        share = row.best_costs[constraint.metric] / constraint.limit
        notes.append(f"best {row.best_accuracy:.4f} at {share:.1%} of the limit")
    elif row.done:
        notes.append("nothing within the budget yet")
    if row.best_reward is not None:
        notes.append(f"reward {row.best_reward:.4f}")
    if row.failures:
        notes.append(f"{row.failures} failed")
    if stopped_early(row.finished, row.error, row.done, row.total):
        notes.append(f"stopped: {STOPPED}")
    return ", ".join(notes)
