"""`summary.json`: what a run found, in one file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from automl.costs.accelerator import usage_of
from automl.costs.pricing import accelerator_backend, price, pricing_backend
from automl.problem import Problem
from automl.run.directory import RunDirectory
from automl.run.explanation import Explanation
from automl.run.finalists import NAMES, Finalist, read_result
from automl.run.store import Store
from backends.base import HardwareBackend
from search_spaces.objective import UNITS, violation
from search_spaces.policy import LayerPolicy, layer_to_json


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
    backend = pricing_backend(config.measure.accelerator)
    explanation = Explanation.read(directory.explanation_file)
    store = Store.read(directory.store_file)
    try:
        counts = store.counts()
    finally:
        store.close()
    networks = {name: _network(problem, directory, by_name.get(name), latencies, backend) for name in NAMES}
    return {
        "state": state,
        "seeds": list(config.search.seeds),
        "evaluations": config.search.evaluations,
        "wall_s": round(wall_s, 3),
        "budget": _budget(problem, latencies),
        "budgets": _budgets(problem, latencies, networks),
        **networks,
        "algorithm": config.search.algorithm,
        "metric": problem.metric.name,
        "searches": dict(sorted(counts.items())),
        "layers": _layers(problem, by_name),
        "treatments": _treatments(problem, by_name),
        "explanation": None if explanation is None else explanation.to_json(),
        "latency_device": None if config.measure.device is None else config.measure.device.model_dump(mode="json"),
        "latency_engine": None if config.measure.backend == "none" else config.measure.backend,
        "latency_errors": dict(latencies.get("errors", {})),
        "paths": {
            "store": directory.store_file.name,
            "report": directory.report_file.name,
            "best": directory.best.name,
        },
    }


def budget_text(problem: Problem) -> str:
    """The budgets in a few words, for whoever looks on."""
    limit = problem.constraint
    if problem.config.budget is None:
        return "accuracy-guaranteed, no hard budget"
    latency = problem.latency
    whole = price(problem.graph, None, problem.backend)[limit.metric] if latency is None else latency.baseline_s
    text = f"at most {limit.amount(limit.limit)} ({limit.limit / whole:.1%})"
    if latency is not None and latency.margin:
        text += f", {latency.margin:.1%} of it held back"
    return " and ".join([text, *(each.amount(each.limit) for each in problem.constraints[1:])])


def _budget(problem: Problem, latencies: Mapping[str, Any]) -> dict[str, Any]:
    """The budget; of a latency budget also what it is by the clock, what it is a share of, and what was held back.

    A limit that only measuring tells is null until then.
    """
    asked, constraint, latency = problem.config.budget, problem.constraint, problem.latency
    metric = constraint.metric if asked is None else asked.metric
    limit = None if asked is None else constraint.limit if metric == constraint.metric else asked.limit
    budget: dict[str, Any] = {"metric": metric, "limit": limit, "unit": UNITS[metric]}
    if latency is not None:
        budget["table_baseline_s"] = latency.baseline_s
        budget["margin"] = latency.margin
    if problem.config.latency_budget:
        budget["measured_limit"] = _allowed_s(problem, latencies)
    return budget


def _budgets(
    problem: Problem, latencies: Mapping[str, Any], networks: Mapping[str, Mapping[str, Any] | None]
) -> list[dict[str, Any]]:
    """All budgets, the first as `_budget` has it, each with what the uncompressed and the best network take of it."""
    further = [
        {"metric": each.metric, "limit": each.limit, "unit": UNITS[each.metric]} for each in problem.constraints[1:]
    ]
    return [{**each, **_use(each, networks)} for each in [_budget(problem, latencies), *further]]


def _use(budget: Mapping[str, Any], networks: Mapping[str, Mapping[str, Any] | None]) -> dict[str, float | None]:
    """What is taken, a latency by the clock where it was measured; `used` is the best one's share of the limit."""
    baseline, best = (networks[name] or {} for name in ("baseline", "best"))
    metric, limit = budget["metric"], budget["limit"]
    if metric == "latency_s" and (budget.get("measured_limit") is None or best.get("latency_s") is None):
        metric = "table_latency_s"
    elif metric == "latency_s":
        limit = budget["measured_limit"]
    before, after = baseline.get(metric), best.get(metric)
    return {"baseline": before, "best": after, "used": None if after is None or not limit else after / limit}


def _allowed_s(problem: Problem, latencies: Mapping[str, Any]) -> float | None:
    """Seconds that a latency budget allows by the clock; None where they depend on what was not measured."""
    asked, baseline_s = problem.config.budget, _measured_s(problem, latencies, "baseline")
    if asked is None or asked.ratio is None:
        return None if asked is None else asked.limit
    return None if baseline_s is None else asked.ratio * baseline_s


def _measured_s(problem: Problem, latencies: Mapping[str, Any], name: str) -> float | None:
    """Seconds that a network takes by the clock, in the config's backend; None where it was not measured."""
    timed = latencies.get("networks", {}).get(name, {}).get(problem.config.measure.backend)
    return timed["latency_s"] if timed else None


def _verdict(
    problem: Problem, latencies: Mapping[str, Any], finalist: Finalist, cost: Mapping[str, float]
) -> dict[str, Any]:
    """Whether a network keeps the budgets.

    One in latency is kept by the clock where the network was measured, else by the table where there is one; it comes
    with the latency by the table, and how far the clock is off that.
    """
    config, latency = problem.config, problem.latency
    if not config.latency_budget:
        return {"feasible": config.budget is None or violation(cost, problem.constraints) == 0.0}
    measured_s, allowed_s = _measured_s(problem, latencies, finalist.name), _allowed_s(problem, latencies)
    table_s = feasible = error = None
    if latency is not None:
        table_s = latency.baseline_s if finalist.name == "baseline" else finalist.table_latency_s
    if latency is not None and table_s is not None:
        feasible = table_s <= latency.limit_s
        if measured_s is not None:
            error = measured_s / table_s - 1.0
    if measured_s is not None and allowed_s is not None:
        feasible = measured_s <= allowed_s
    if feasible and violation(cost, problem.constraints[1:]) > 0.0:
        feasible = False
    return {"table_latency_s": table_s, "table_error": error, "feasible": feasible}


def _network(
    problem: Problem,
    directory: RunDirectory,
    finalist: Finalist | None,
    latencies: Mapping[str, Any],
    backend: HardwareBackend,
) -> dict[str, Any] | None:
    if finalist is None:
        return None
    folder = directory.finalists / finalist.name
    result = read_result(folder, finalist) or {}
    cost = price(problem.graph, finalist.policy, backend)
    timed = latencies.get("networks", {}).get(finalist.name, {})
    own, runtime = timed.get(problem.config.measure.backend), timed.get("onnxruntime")
    return {
        "accuracy": result.get("accuracy"),
        "accuracy_before": result.get("accuracy_before"),
        "search_accuracy": result.get("search_accuracy"),
        "macs": int(cost["macs"]),
        "params": int(cost["params"]),
        "weight_bytes": int(cost["weight_bytes"]),
        "modelled_latency_s": cost.get("modelled_latency_s"),
        "energy_j": cost.get("energy_j"),
        "latency_s": own["latency_s"] if own else None,
        "latency_measured": own is not None,
        "latency_p10_s": own["p10_s"] if own else None,
        "latency_p90_s": own["p90_s"] if own else None,
        "onnxruntime_latency_s": runtime["latency_s"] if runtime else None,
        **_verdict(problem, latencies, finalist, cost),
        "fine_tune_epochs": result.get("fine_tune_epochs"),
        "resolution": None if finalist.policy.resolution is None else list(finalist.policy.resolution),
        "search": finalist.search,
        "number": finalist.number,
        "weights": str(Path(directory.finalists.name) / finalist.name / "model.safetensors"),
    }


def accelerator_usage(problem: Problem, finalists: Sequence[Finalist]) -> dict[str, Any] | None:
    """What each layer of the baseline and of the best network takes on the config's accelerator; None without one."""
    accelerator = problem.config.measure.accelerator
    if accelerator is None:
        return None
    backend = accelerator_backend(accelerator)
    return {
        finalist.name: usage_of(backend, problem.graph.apply(finalist.policy)).to_json()
        for finalist in finalists
        if finalist.name in ("baseline", "best")
    }


def _layers(problem: Problem, finalists: Mapping[str, Finalist]) -> list[dict[str, Any]]:
    """What each channel group keeps under the best policy."""
    if "best" not in finalists:
        return []
    graph = problem.graph.apply(finalists["best"].policy)
    gone = {layer for block in graph.removed for layer in block.layers}
    return [
        {"name": group.name, "kept": 0 if gone.issuperset(group.producers) else units, "width": group.width}
        for group, units in zip(graph.groups, graph.kept, strict=True)
    ]


def _treatments(problem: Problem, finalists: Mapping[str, Finalist]) -> list[dict[str, Any]]:
    """What the best policy does to layers and blocks beside pruning, with their bytes after and before."""
    if "best" not in finalists:
        return []
    graph = problem.graph.apply(finalists["best"].policy)
    present = {layer.name: layer for layer in graph.layers}
    found = []
    for name, said in graph.treatments:
        parts = [present[part.name] for part in graph.parts.get(name, ())] or [present[name]]
        found.append((name, said, [problem.graph.layer(name)], parts))
    for block in graph.removed:
        found.append((block.name, LayerPolicy(remove=True), [problem.graph.layer(name) for name in block.layers], []))
    return [
        {
            "name": name,
            **layer_to_json(said),
            "weight_bytes": sum(layer.weight_bytes for layer in after),
            "whole_bytes": sum(layer.weight_bytes for layer in before),
        }
        for name, said, before, after in found
    ]
