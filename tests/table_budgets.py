"""What holds of every finished run under a latency budget that is priced by a table."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from automl.costs.latency_budget import LatencyBudget
from automl.run.explanation import Explanation


def check_table_budget(run: Path, ratio: float, margin: float) -> None:
    """What was found keeps the budget by the table, and what was measured stands beside it.

    Args:
        run: its directory.
        ratio, margin: of its config.
    """
    summary = json.loads((run / "summary.json").read_text())
    budget, recorded = summary["budget"], LatencyBudget.read(run / "latency_budget.json")
    assert recorded is not None
    assert budget["limit"] == recorded.limit_s == ratio * recorded.baseline_s
    assert budget["measured_limit"] == pytest.approx(ratio * summary["baseline"]["latency_s"])
    assert recorded.margin == margin
    held_back = budget["limit"] / (1 + margin)
    with closing(sqlite3.connect(f"file:{run / 'trials.sqlite'}?mode=ro", uri=True)) as connection:
        rows = connection.execute("SELECT search, cost, violation, feasible, error FROM evaluations").fetchall()
    for search, cost, violation, feasible, error in rows:
        assert json.loads(cost)["latency_s"] <= held_back, search
        assert (violation, feasible, error) == (0.0, 1, None)
    trained = ["from_scratch"] if summary["best"]["fine_tune_epochs"] else []
    for name in ("baseline", "best", "uniform", "random", *trained):
        network = summary[name]
        assert network["latency_measured"]
        assert network["table_error"] == pytest.approx(network["latency_s"] / network["table_latency_s"] - 1)
        assert network["feasible"] == (network["latency_s"] <= budget["measured_limit"])
    assert summary["best"]["table_latency_s"] <= held_back < summary["baseline"]["table_latency_s"]
    assert "by the latency table" in (run / "report.html").read_text()
    assert not list(run.glob("*.tmp"))
    explained = Explanation.read(run / "explanation.json")
    assert explained is not None
    (used,) = explained.budgets
    assert (used.limit, used.after) == pytest.approx((budget["limit"], summary["best"]["table_latency_s"]))
    shares = [layer.costs["latency_s"] for layer in explained.layers]  # pools are no layer's
    assert 0.5 * used.after < sum(after for _, after in shares) <= used.after
