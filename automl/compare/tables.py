"""A comparison as rich tables."""

from collections.abc import Sequence
from math import isfinite

from rich.table import Table
from rich.text import Text

from automl.compare.comparison import Comparison, Contest, Standing
from automl.compare.statistics import Difference, Quartiles
from automl.report.data import RunData
from automl.report.figures import cost_text, value_text
from automl.report.method import metric_label
from automl.run.store import STOPPED

MOST_OF_THE_FRONT = 12


def comparison_tables(comparison: Comparison) -> list[Table]:
    """A table of algorithms for each budget, and one of the Pareto front over all runs."""
    data = comparison.runs[0].data
    tables = [_standings(contest, comparison.objectives, data) for contest in comparison.contests]
    if comparison.repeated:
        said = f"Searches that stand in several runs are counted once, {comparison.repeated} left out."
        tables[-1].caption = f"{tables[-1].caption} {said}" if tables[-1].caption else said
    return [*tables, _front(comparison, data)]


def _standings(contest: Contest, objectives: Sequence[str], data: RunData) -> Table:
    reach = [cost_text(metric)(limit) for metric, limit in zip(objectives, contest.reference, strict=False)]
    table = Table(title=f"{contest.budget}; hypervolume within {' and '.join(reach)}")
    table.add_column("algorithm", overflow="fold")
    share = " in %" if data.shares else ""
    headings = (
        "seeds",
        f"best {data.metric_name}{share}",
        f"test {data.metric_name}{share}",
        "evaluations",
        "seconds",
        "hypervolume",
        "to the best, 95 %",
    )
    for heading in headings:
        table.add_column(Text(heading), justify="right", overflow="fold")
    for standing in contest.standings:
        table.add_row(
            Text(standing.name),
            "-" if standing.seedless else str(len(standing.searches)),
            _median(standing.best, data, spread=len(standing.searches) > 1),
            "-" if standing.test_accuracy is None else _value(standing.test_accuracy, data),
            _evaluations(standing),
            f"{standing.seconds:,.0f}" if standing.seconds >= 10 else f"{standing.seconds:.2g}",
            f"{standing.hypervolume.median:.4f}",
            "best" if standing is contest.standings[0] else _difference(standing.difference, data),
        )
    unfinished = sum(standing.unfinished for standing in contest.standings)
    stopped = [
        f"{each.name}{'' if each.seedless else f' ({each.stopped} of {len(each.searches)} seeds)'}"
        for each in contest.standings
        if each.stopped
    ]
    notes = [
        f"Stopped early, where {STOPPED}: {', '.join(stopped)}." if stopped else "",
        f"{unfinished} searches are not finished." if unfinished else "",
        "Not all were allowed as many evaluations." if contest.unequal else "",
    ]
    table.caption = " ".join(note for note in notes if note) or None
    return table


def _median(quartiles: Quartiles, data: RunData, *, spread: bool) -> str:
    """The median, with the quartiles beside it where there is more than one seed."""
    median = _value(quartiles.median, data)
    return f"{median} ({_value(quartiles.lower, data)} to {_value(quartiles.upper, data)})" if spread else median


def _value(value: float, data: RunData) -> str:
    if not isfinite(value):
        return "none"
    return f"{100.0 * value:.2f}" if data.shares else f"{value:.4g}"


def _evaluations(standing: Standing) -> str:
    made = f"{round(standing.evaluations, 1):g}"
    whole = standing.unfinished or standing.stopped
    return f"{made} of {standing.searches[0].planned}" if whole else made


def _difference(difference: Difference | None, data: RunData) -> str:
    """In percentage points where the metric is a share; a star where 0 is outside the interval."""
    if difference is None:
        return "-"
    mean, low, high = (
        "" if each is None else f"{100.0 * each:+.2f}" if data.shares else f"{each:+.4g}"
        for each in (difference.mean, difference.low, difference.high)
    )
    if difference.low is None:
        return f"{mean} (1 seed)"
    return f"{mean} ({low} to {high}){' *' if difference.told_apart else ''}"


def _front(comparison: Comparison, data: RunData) -> Table:
    """The front, thinned where it is long; its ends always stay."""
    front, metrics = comparison.front, comparison.objectives
    last = len(front) - 1
    kept = sorted({round(index * last / (MOST_OF_THE_FRONT - 1)) for index in range(MOST_OF_THE_FRONT)})
    table = Table(title=f"Pareto front over all runs: {len(front)} of the policies")
    for title in (*map(metric_label, metrics), f"search {data.metric_name}"):
        table.add_column(Text(title), justify="right")
    for title in ("algorithm", "seed", "number", "run"):
        table.add_column(title, overflow="fold")
    for placed in (front[index] for index in kept):
        point, search = placed.point, placed.search
        table.add_row(
            *(cost_text(metric)(point.costs[metric]) for metric in metrics),
            value_text(data)(point.accuracy),
            Text(search.algorithm),
            str(search.seed),
            str(point.number),
            Text(str(search.run.path)),
        )
    if len(kept) < len(front):
        table.caption = f"{len(kept)} of them; --json has all"
    return table
