"""What a run tells whoever scrapes Ray's metrics port: the names, and what sets them. docs/watching.md lists them."""

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

from search_spaces.objective import Constraint

if TYPE_CHECKING:
    from automl.orchestration.dispatcher import SearchProgress

SHOWN_EVERY_S = 1.0
"""Ray collects what was set every few seconds; more often than this is for nobody."""

RATE_OVER_S = 60.0


@dataclass(frozen=True, slots=True)
class Series:
    """A metric that is exported.

    Attributes:
        kind: a counter's series ends in "_total".
        text: what it is, with its unit.
        labels: beside "run", the name of the run directory.
    """

    kind: Literal["gauge", "counter"]
    text: str
    labels: tuple[str, ...] = ()


SEARCH, BUDGET = ("search",), ("search", "metric")
SERIES: Mapping[str, Series] = {
    "trimtab_best_reward": Series("gauge", "Highest reward of a search so far", SEARCH),
    "trimtab_best_accuracy": Series("gauge", "Accuracy of a search's best feasible policy so far", SEARCH),
    "trimtab_feasible_share": Series("gauge", "Share of a search's whole evaluations within all budgets", SEARCH),
    "trimtab_progress": Series("gauge", "Share of its evaluations that a search has made", SEARCH),
    "trimtab_best_budget_share": Series("gauge", "Cost of the best policy over the budget's limit", BUDGET),
    "trimtab_last_budget_share": Series("gauge", "Cost of the last policy over the budget's limit", BUDGET),
    "trimtab_evaluations": Series("counter", "Evaluations of a search on record", SEARCH),
    "trimtab_failures": Series("counter", "Evaluations of a search on record that failed", SEARCH),
    "trimtab_evaluations_per_second": Series("gauge", "Evaluations a second over the last minute, all searches"),
    "trimtab_evaluators_up": Series("gauge", "Evaluators that are up"),
    "trimtab_table_hits": Series("counter", "Operators asked for that the latency table knew"),
    "trimtab_table_misses": Series("counter", "Operators asked for that the latency table lacked"),
}


def exported(name: str) -> str:
    """The name that a metric has at the port."""
    return f"ray_{name}_total" if SERIES[name].kind == "counter" else f"ray_{name}"


class Meters:
    """A run's metrics in a process of Ray's, each made when it is first set.

    Args:
        run: name of the run, their first label.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._made: dict[str, Any] = {}

    def set(self, name: str, value: float | None, **labels: str) -> None:
        """A gauge has a value; None leaves it as it is."""
        if value is not None:
            self._meter(name).set(value, labels)

    def add(self, name: str, count: int, **labels: str) -> None:
        """A counter has risen."""
        if count > 0:
            self._meter(name).inc(count, labels)

    def _meter(self, name: str) -> Any:
        if name not in self._made:
            from ray.util import metrics

            series = SERIES[name]
            kind = metrics.Gauge if series.kind == "gauge" else metrics.Counter
            made = kind(name, series.text, tag_keys=("run", *series.labels))
            self._made[name] = made.set_default_tags({"run": self._run})
        return self._made[name]


class SearchMeters:
    """The metrics of a run's searches.

    Args:
        run: name of the run.
        constraints: the budgets that costs are compared with.
    """

    def __init__(self, run: str, constraints: Sequence[Constraint]) -> None:
        self._meters = Meters(run)
        self._limits = {each.metric: each.limit for each in constraints if isfinite(each.limit)}
        self._counted: dict[tuple[str, str], int] = {}
        self._recent: deque[tuple[float, int]] = deque()
        self._shown_at = -SHOWN_EVERY_S

    def show(self, searches: Iterable["SearchProgress"], evaluators: int) -> None:
        """Set everything, at most once a second.

        Args:
            searches: how far they are.
            evaluators: that are up.
        """
        now = time.monotonic()
        if now - self._shown_at < SHOWN_EVERY_S:
            return
        self._shown_at = now
        rows = list(searches)
        for row in rows:
            self._show(row)
        self._meters.set("trimtab_evaluators_up", evaluators)
        self._meters.set("trimtab_evaluations_per_second", self._rate(now, sum(row.evaluations for row in rows)))

    def _show(self, row: "SearchProgress") -> None:
        self._meters.set("trimtab_best_reward", row.best_reward, search=row.name)
        self._meters.set("trimtab_best_accuracy", row.best_accuracy, search=row.name)
        self._meters.set("trimtab_feasible_share", row.feasible / row.whole if row.whole else None, search=row.name)
        self._meters.set("trimtab_progress", min(1.0, row.done / row.total), search=row.name)
        for name, costs in (
            ("trimtab_best_budget_share", row.best_costs),
            ("trimtab_last_budget_share", row.last_costs),
        ):
            for metric, limit in self._limits.items():
                if metric in costs:
                    self._meters.set(name, costs[metric] / limit, search=row.name, metric=metric)
        for name, count in (("trimtab_evaluations", row.evaluations), ("trimtab_failures", row.failures)):
            self._meters.add(name, count - self._counted.get((name, row.name), 0), search=row.name)
            self._counted[name, row.name] = count

    def _rate(self, now: float, evaluations: int) -> float:
        self._recent.append((now, evaluations))
        while len(self._recent) > 2 and now - self._recent[0][0] > RATE_OVER_S:
            self._recent.popleft()
        since, before = self._recent[0]
        return (evaluations - before) / (now - since) if now > since else 0.0
