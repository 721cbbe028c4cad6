"""`summary.json`: what a run found, in one file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from automl.finalists import NAMES, Finalist, read_result
from automl.pricing import price
from automl.problem import Problem
from automl.run_directory import RunDirectory
from automl.store import Store


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
    config, constraint = problem.config, problem.constraint
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
        "budget": {
            "metric": constraint.metric,
            "limit": None if config.budget is None else constraint.limit,
            "unit": constraint.unit,
        },
        **{name: _network(problem, directory, by_name.get(name), latencies) for name in NAMES},
        "algorithm": config.search.algorithm,
        "metric": problem.metric.name,
        "searches": dict(sorted(counts.items())),
        "layers": _layers(problem, by_name),
        "latency_errors": dict(latencies.get("errors", {})),
        "paths": {
            "store": directory.store_file.name,
            "report": directory.report_file.name,
            "best": directory.best.name,
        },
    }


def _network(
    problem: Problem, directory: RunDirectory, finalist: Finalist | None, latencies: Mapping[str, Any]
) -> dict[str, Any] | None:
    if finalist is None:
        return None
    folder = directory.finalists / finalist.name
    result = read_result(folder, finalist) or {}
    cost = price(problem.graph, finalist.policy)
    timed = latencies.get("networks", {}).get(finalist.name, {})
    tvm, runtime = timed.get("tvm"), timed.get("onnxruntime")
    return {
        "accuracy": result.get("accuracy"),
        "search_accuracy": result.get("search_accuracy"),
        "macs": int(cost["macs"]),
        "params": int(cost["params"]),
        "weight_bytes": int(cost["weight_bytes"]),
        "latency_s": tvm["latency_s"] if tvm else None,
        "latency_measured": tvm is not None,
        "latency_p10_s": tvm["p10_s"] if tvm else None,
        "latency_p90_s": tvm["p90_s"] if tvm else None,
        "onnxruntime_latency_s": runtime["latency_s"] if runtime else None,
        "feasible": problem.constraint.violation(cost) == 0.0,
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
