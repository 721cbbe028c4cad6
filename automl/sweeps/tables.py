"""What is printed of a sweep, as rich tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from automl.sweeps.results import CellResult
from automl.tables import amount, latency, number


def cell_table(cells: Sequence[CellResult], title: str) -> Table:
    """What came of every cell."""
    table = Table(title=title)
    table.add_column("cell", overflow="fold")
    table.add_column("state")
    for heading in ("accuracy", "baseline", "cost", "budget", "latency", "seconds"):
        table.add_column(heading, justify="right")
    for cell in cells:
        table.add_row(
            Text(cell.name),
            cell.state if cell.state != "running" else f"running: {cell.stage}",
            number(cell.accuracy),
            number(cell.baseline),
            *_budget(cell.budget),
            latency(cell.latency_s),
            f"{cell.seconds:.0f}",
        )
    table.caption = "accuracies are those of the test split"
    return table


def counted(states: Mapping[str, int]) -> str:
    """How many cells are in which state."""
    return ", ".join(f"{count} {state}" for state, count in states.items())


def _budget(budget: Mapping[str, Any] | None) -> tuple[str, str]:
    """What the best policy takes, and what is allowed."""
    if budget is None:
        return "-", "-"
    limit, metric, best = budget.get("measured_limit") or budget.get("limit"), budget["metric"], budget.get("best")
    ratio = budget.get("ratio")
    allowed = amount(metric, limit) if limit is not None else "-" if ratio is None else f"{ratio:.0%}"
    return "-" if best is None else amount(metric, best), f"{metric}: {allowed}"
