"""Where a run stands, read from its directory; nothing heavy is loaded."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

from automl.errors import InputError
from automl.run.directory import RunDirectory
from automl.run.store import Store


def run_status(directory: RunDirectory) -> dict[str, Any]:
    """State, stage, searches and finalists of a run, JSON-ready."""
    info = directory.standing()
    return {
        "directory": str(directory.path),
        "state": info.state,
        "stage": info.stage,
        "reason": info.reason,
        "driver": directory.driver_text,
        "wall_s": info.wall_s,
        "created_at": info.created_at,
        "budgets": _budgets(directory),
        "searches": search_overview(directory),
        "finalists": _finalists(directory.finalists),
    }


def _budgets(directory: RunDirectory) -> list[dict[str, Any]]:
    """As the summary has them; before there is one, what the config asks for."""
    stated = directory.summary().get("budgets")
    if isinstance(stated, list):
        return stated
    return [
        {"metric": each.metric, "limit": each.limit, "ratio": each.ratio, "used": None}
        for each in directory.config().budgets
    ]


def search_overview(directory: RunDirectory) -> list[dict[str, Any]]:
    """How far each search of a run is, see `automl.run.store.Store.overview`; none before they begin."""
    if not directory.store_file.exists():
        return []
    with closing(Store.read(directory.store_file)) as store:
        return store.overview()


def run_front(directory: RunDirectory, metric: str | None = None) -> list[dict[str, Any]]:
    """The Pareto front of what a run has evaluated so far: nothing cheaper is as accurate. JSON-ready, by rising cost.

    Args:
        directory: of the run.
        metric: the cost; by default that of its first budget.

    Raises:
        InputError: no evaluation was priced in that metric.
    """
    budgets = directory.config().budgets
    metric = metric or (budgets[0].metric if budgets else "macs")
    if not search_overview(directory):
        return []
    with closing(Store.read(directory.store_file)) as store:
        found = store.front(metric)
        priced = sorted(next((row.evaluation.cost for row in store.figures()), {}))
    if not found and priced and metric not in priced:
        raise InputError(f"no evaluation was priced in {metric!r}; this run knows {', '.join(priced)}")
    return [
        {
            "search": row.search,
            "number": row.number,
            "accuracy": row.evaluation.accuracy,
            "cost": dict(row.evaluation.cost),
            "feasible": row.evaluation.feasible,
            "policy": json.loads(row.policy.to_json()),
        }
        for row in found
    ]


def _finalists(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        return {}
    return {entry.name: _finalist(entry) for entry in sorted(folder.iterdir()) if entry.is_dir()}


def _finalist(folder: Path) -> str:
    if (folder / "result.json").exists():
        return "finished"
    try:
        found = json.loads((folder / "progress.json").read_bytes())
        return f"epoch {found['epoch']}/{found['epochs']}"
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return "waiting"
