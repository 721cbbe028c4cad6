"""`summary.json`: what a run found, in one file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from automl.costs.pricing import price
from automl.problem import Problem
from automl.run.directory import RunDirectory
from automl.run.finalists import NAMES, Finalist, read_result
from automl.run.store import Store


def build_summary(
    problem: Problem,
    directory: RunDirectory,
    state: str,
    finalists: Sequence[Finalist],
    latencies: Mapping[str, Any],
    wall_s: float,
) -> dict[str, Any]:
    """The summary of a run, JSON-ready; paths are relative to the run directory.

    Args:
        problem: what was searched.
        directory: of the run.
        state: of the run.
        finalists: the networks compared; what is missing from them is null.
        latencies: what `latency.json` holds.
        wall_s: seconds that the run took, over all resumes.
    """
    config = problem.config
    by_name = {finalist.name: finalist for finalist in finalists}
    store = Store.read(directory.store_file)
    try:
        counts = store.counts()
    finally:
        store.close()
    return {
        "state": state,
        "seeds": list(config.search.seeds),
        "evaluations": config.search.evaluations,
        "wall_s": round(wall_s, 3),
        "budget": _budget(problem, latencies),
        **{name: _network(problem, directory, by_name.get(name), latencies) for name in NAMES},
        "algorithm": config.search.algorithm,
        "metric": problem.metric.name,
        "searches": dict(sorted(counts.items())),
        "layers": _layers(problem, by_name),
        "latency_engine": None if config.measure.backend == "none" else config.measure.backend,
        "latency_errors": dict(latencies.get("errors", {})),
        "paths": {
            "store": directory.store_file.name,
            "report": directory.report_file.name,
            "best": directory.best.name,
        },
    }


def _budget(problem: Problem, latencies: Mapping[str, Any]) -> dict[str, Any]:
    """The budget; of a latency budget also what it is a share of, what was held back, and what it is by the clock."""
    constraint, latency = problem.constraint, problem.latency
    limit = None if problem.config.budget is None else constraint.limit
    budget: dict[str, Any] = {"metric": constraint.metric, "limit": limit, "unit": constraint.unit}
    if latency is not None:
        baseline_s = _measured_s(problem, latencies, "baseline")
        budget["table_baseline_s"] = latency.baseline_s
        budget["margin"] = latency.margin
        budget["measured_limit"] = None if baseline_s is None else latency.allowed_s(baseline_s)
    return budget


def _measured_s(problem: Problem, latencies: Mapping[str, Any], name: str) -> float | None:
    """Seconds that a network takes by the clock, in the config's backend; None where it was not measured."""
    timed = latencies.get("networks", {}).get(name, {}).get(problem.config.measure.backend)
    return timed["latency_s"] if timed else None


def _verdict(
    problem: Problem, latencies: Mapping[str, Any], finalist: Finalist, cost: Mapping[str, float]
) -> dict[str, Any]:
    """Whether a network keeps the budget.

    One in latency is kept by the clock where the network was measured, else by the table; it comes with the latency by
    the table, and how far the clock is off that.
    """
    budget = problem.latency
    if budget is None:
        return {"feasible": problem.constraint.violation(cost) == 0.0}
    table_s = budget.baseline_s if finalist.name == "baseline" else finalist.table_latency_s
    measured_s, baseline_s = (_measured_s(problem, latencies, name) for name in (finalist.name, "baseline"))
    feasible = error = None
    if table_s is not None:
        feasible = table_s <= budget.limit_s
        if measured_s is not None:
            error = measured_s / table_s - 1.0
    if measured_s is not None and baseline_s is not None:
        feasible = measured_s <= budget.allowed_s(baseline_s)
    return {"table_latency_s": table_s, "table_error": error, "feasible": feasible}


def _network(
    problem: Problem, directory: RunDirectory, finalist: Finalist | None, latencies: Mapping[str, Any]
) -> dict[str, Any] | None:
    if finalist is None:
        return None
    folder = directory.finalists / finalist.name
    result = read_result(folder, finalist) or {}
    cost = price(problem.graph, finalist.policy)
    timed = latencies.get("networks", {}).get(finalist.name, {})
    own, runtime = timed.get(problem.config.measure.backend), timed.get("onnxruntime")
    return {
        "accuracy": result.get("accuracy"),
        "search_accuracy": result.get("search_accuracy"),
        "macs": int(cost["macs"]),
        "params": int(cost["params"]),
        "weight_bytes": int(cost["weight_bytes"]),
        "latency_s": own["latency_s"] if own else None,
        "latency_measured": own is not None,
        "latency_p10_s": own["p10_s"] if own else None,
        "latency_p90_s": own["p90_s"] if own else None,
        "onnxruntime_latency_s": runtime["latency_s"] if runtime else None,
        **_verdict(problem, latencies, finalist, cost),
        "fine_tune_epochs": result.get("fine_tune_epochs"),
        "search": finalist.search,
        "number": finalist.number,
        "weights": str(Path(directory.finalists.name) / finalist.name / "model.safetensors"),
    }


def _layers(problem: Problem, finalists: Mapping[str, Finalist]) -> list[dict[str, Any]]:
    """What each channel group keeps under the best policy."""
    if "best" not in finalists:
        return []
    kept = problem.graph.kept_units(finalists["best"].policy)
    return [
        {"name": group.name, "kept": units, "width": group.width}
        for group, units in zip(problem.graph.groups, kept, strict=True)
    ]
