"""What `trimtab watch` shows of a run, as rich tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from automl.run.watching import RunView, SearchView
from automl.tables import amount
from search_spaces.objective import Evaluation

LEVELS = "▁▂▃▄▅▆▇█"
WIDTH = 24
"""Characters of a curve."""


def run_tables(view: RunView) -> RenderableType:
    """A run at a glance."""
    parts: list[RenderableType] = [_headline(view.status, view.rate if view.searching else 0.0)]
    if view.searches:
        parts.append(_searches(view))
    if view.last and view.searching:
        parts.append(_last(view))
    if view.status["finalists"]:
        finalists = ", ".join(f"{name} {state}" for name, state in view.status["finalists"].items())
        parts.append(Text(f"finalists: {finalists}"))
    return Group(*parts)


def job_tables(title: str, stage: str, tasks: Mapping[str, tuple[int, int, str]], message: str) -> RenderableType:
    """A job of a cluster at a glance.

    Args:
        title: which, and how far it is.
        stage: the line that its stage began with.
        tasks: done, total and note of each task of the stage.
        message: of the cluster, where the job failed.
    """
    table = Table(show_header=bool(tasks))
    table.add_column("task", no_wrap=True)
    table.add_column("done", justify="right")
    table.add_column("note", overflow="fold")
    for name, (done, total, note) in tasks.items():
        table.add_row(Text(name), f"{done}/{total}", Text(note))
    lines = [line for line in (title, stage, message) if line]
    return Group(*map(Text, lines), *([table] if tasks else []))


def sparkline(curve: Sequence[float | None]) -> str:
    """A curve as a row of blocks between its least and its greatest value; blank where there is no value yet.

    >>> sparkline([None, 0.5, 0.5, 0.75, 1.0])
    ' ▁▁▅█'
    """
    known = [value for value in curve if value is not None]
    least, span = min(known, default=0.0), max(known, default=0.0) - min(known, default=0.0)
    top = len(LEVELS) - 1

    def block(value: float | None) -> str:
        if value is None:
            return " "
        return LEVELS[int((value - least) / span * top + 0.5)] if span else LEVELS[top // 2]

    return "".join(map(block, curve))


def _headline(status: Mapping[str, Any], rate: float) -> Text:
    text = Text(f"{status['directory']}: ")
    text.append(status["state"], "bold")
    text.append(f", {status['stage']}, driven for {status['wall_s']:.0f} s")
    if rate:
        text.append(f", {rate:.2f} evaluations/s")
    if status["reason"]:
        text.append(f"\n{status['reason']}")
    return text


def _searches(view: RunView) -> Table:
    metric = next(iter(view.limits), None)
    limit = None if metric is None else amount(metric, view.limits[metric])
    table = Table(title=f"at most {limit}" if limit else None)
    table.add_column("search", no_wrap=True)
    for title in ("evaluations", "best", "of the budget", "feasible", "failed", "reward"):
        table.add_column(title, justify="right")
    table.add_column("best so far", no_wrap=True)
    for search in view.searches:
        table.add_row(*_search(search, view.limits))
    return table


def _search(search: SearchView, limits: Mapping[str, float]) -> list[RenderableType]:
    row, best = search.row, search.best
    ended = " done" if row["finished"] and row["error"] is None else " failed" if row["error"] else ""
    return [
        Text(row["name"]),
        f"{row['done']:g}/{row['evaluations']}{ended}",
        "-" if best is None else f"{best.evaluation.accuracy:.4f}",
        "-" if best is None else budget_shares(best.evaluation.cost, limits),
        "-" if search.feasible_share is None else f"{search.feasible_share:.0%}",
        str(row["failures"]),
        "-" if row["best_reward"] is None else f"{row['best_reward']:.4f}",
        sparkline(search.curve(WIDTH)),
    ]


def _last(view: RunView) -> Table:
    table = Table(title="last evaluations")
    table.add_column("search", no_wrap=True)
    for title in ("number", "accuracy", "of the budget"):
        table.add_column(title, justify="right")
    table.add_column("note")
    for each in view.last:
        found = each.evaluation
        accuracy = "-" if found.error else f"{found.accuracy:.4f}"
        shares = budget_shares(found.cost, view.limits)
        table.add_row(Text(each.search), str(each.number), accuracy, shares, Text(_note(found)))
    return table


def _note(found: Evaluation) -> str:
    if found.error is not None:
        return f"failed: {found.error}"
    return "above the budget" if found.violation else f"on {found.share:.0%} of the images" if found.share < 1.0 else ""


def budget_shares(cost: Mapping[str, float], limits: Mapping[str, float]) -> str:
    """What a network takes of each budget: "49.7%", or "49.7% macs, 80.0% params" of several."""
    shares = {metric: cost[metric] / limit for metric, limit in limits.items() if metric in cost}
    if len(shares) == 1:
        return f"{next(iter(shares.values())):.1%}"
    return ", ".join(f"{share:.1%} {metric}" for metric, share in shares.items()) or "-"
