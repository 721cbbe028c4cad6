"""Run directories with made-up figures, for tests of whatever reads one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from automl.config import load_config
from automl.costs.latency_budget import LatencyBudget
from automl.orchestration.searches import searches
from automl.run.directory import RunDirectory, State, write_json
from automl.run.explanation import BudgetUse, ExplainedLayer, Explanation, Loss
from automl.run.store import EvaluationRow, SearchRow, Store
from search_spaces.objective import UNITS, Constraint, Evaluation, Metric, violation
from search_spaces.policy import CompressionPolicy, LayerPolicy

FULL = {"macs": 10_200_000.0, "params": 272_474.0, "weight_bytes": 1_089_896.0, "latency_s": 1.25e-4}
IMAGES = 357
"""Forwarded for an evaluation."""
WIDTHS = (16, 16, 16, 16, 32, 32, 32, 32, 64, 64, 64, 64)


def make_run(
    path: Path,
    *,
    seeds: Sequence[int] = (0,),
    evaluations: int = 60,
    state: State = "done",
    summarised: bool = True,
    overrides: Mapping[str, Any] | None = None,
) -> RunDirectory:
    """A run directory as a search would leave it, with a store, a summary and no network.

    Args:
        path: a directory that does not exist yet.
        seeds: of the searches.
        evaluations: of each search.
        state: in `run.json`.
        summarised: whether there is a `summary.json`.
        overrides: sections of the config.
    """
    config = load_config(
        {
            "model": {"name": "resnet20"},
            "data": {"name": "digits", "args": {"size": 16}},
            "budget": {"metric": "macs", "ratio": 0.5},
            "search": {
                "algorithm": "ddpg",
                "evaluations": evaluations,
                "seeds": list(seeds),
                "options": {"warmup": evaluations // 3},
            },
            **(overrides or {}),
        }
    )
    directory = RunDirectory.create(path, config)
    with directory.drive() as clock:
        clock.set(state, "fine-tuning")
    metric: Metric = "latency_s" if config.priced_by_table else "macs"
    budget = Constraint(metric, FULL[metric] / 2)
    further = [Constraint(each.metric, (each.ratio or 1.0) * FULL[each.metric]) for each in config.further_budgets]  # type: ignore[arg-type]
    budgets = [budget, *further]
    if config.priced_by_table:
        LatencyBudget(FULL[metric], FULL[metric] / 5, budget.limit, 0.5, margin=0.02).write(directory.budget_file)
    store = Store(directory.store_file)
    try:
        rows = searches(config)
        store.add_searches(rows)
        for row in rows:
            if row.algorithm != "uniform":
                _fill(store, row, budgets)
        _add(store, "uniform", 0, 0.49, 0.79, budgets)
    finally:
        store.close()
    if summarised:
        said = summary(seeds, evaluations, state, budget)
        if further:
            said["budgets"] = [_used(said, said["budget"]), *(_used(said, asdict(each)) for each in further)]
        write_json(directory.summary_file, said)
        write_json(directory.explanation_file, explanation(budget).to_json())
    return directory


def summary(seeds: Sequence[int], evaluations: int, state: State, budget: Constraint) -> dict[str, Any]:
    """A `summary.json` with made-up figures."""

    def figures(
        accuracy: float, searched: float, share: float, latency: float, runtime: float | None
    ) -> dict[str, Any]:
        table_s = share * FULL["latency_s"]
        by_table = {"table_latency_s": table_s, "table_error": latency / table_s - 1.0}
        return {
            "accuracy": accuracy,
            "search_accuracy": searched,
            **{name: round(value * share) for name, value in FULL.items() if name != "latency_s"},
            "latency_s": latency,
            "latency_measured": True,
            **(by_table if budget.metric == "latency_s" else {}),
            "feasible": share <= 0.5,
            "onnxruntime_latency_s": runtime,
        }

    return {
        "state": state,
        "seeds": list(seeds),
        "evaluations": evaluations,
        "wall_s": 212.4,
        "budget": {
            "metric": budget.metric,
            "limit": budget.limit,
            "unit": budget.unit,
            **({"margin": 0.02, "measured_limit": 0.61e-4} if budget.metric == "latency_s" else {}),
        },
        "baseline": figures(0.9889, 0.9944, 1.0, 1.22e-4, 1.71e-4),
        "best": figures(0.9861, 0.9021, 0.497, 0.69e-4, 0.98e-4),
        "uniform": figures(0.9806, 0.79, 0.49, 0.72e-4, None),
        "random": figures(0.9833, 0.861, 0.495, 0.75e-4, None),
        "from_scratch": figures(0.9750, 0.9021, 0.497, 0.69e-4, None),
        "fine_tune_epochs": 20,
        "layers": [
            {
                "name": f"stage{1 + i // 4}.block{i % 4 // 2}.conv{1 + i % 2}",
                "kept": max(2, w * (3 + i % 5) // 8),
                "width": w,
            }
            for i, w in enumerate(WIDTHS)
        ],
    }


def _used(said: Mapping[str, Any], budget: Mapping[str, Any]) -> dict[str, Any]:
    """A budget as `summary.json` has it among several."""
    costs = {name: said[name][budget["metric"]] for name in ("baseline", "best")}
    return {**budget, "unit": UNITS[budget["metric"]], **costs, "used": costs["best"] / budget["limit"]}


def explanation(budget: Constraint) -> Explanation:
    """A made-up explanation of the best policy of `summary`."""
    kept = summary((), 0, "done", budget)["layers"]
    whole, generator = FULL[budget.metric], np.random.default_rng(0)
    layers = [
        ExplainedLayer(
            name=group["name"],
            policy=LayerPolicy(keep=group["kept"] / group["width"], weight_bits=8),
            kept=group["kept"],
            width=group["width"],
            group=None,
            loss=Loss(float(accuracy), float(divergence)),
            costs={budget.metric: (whole / 13, whole / 13 * (group["kept"] / group["width"]) ** 2)},
        )
        for group, accuracy, divergence in zip(
            kept, generator.uniform(-0.01, 0.06, len(kept)), generator.uniform(0.0, 0.1, len(kept)), strict=True
        )
    ]
    layers[1] = replace(layers[1], group=layers[0].name)
    layers[2] = replace(layers[2], loss=Loss(0.0, None, "out of memory"))
    layers[3] = replace(layers[3], policy=LayerPolicy(), kept=layers[3].width, loss=None)
    budgets = [BudgetUse(budget.metric, budget.limit, whole, 0.497 * whole)]
    return Explanation("0" * 64, 256, Loss(0.0923, 0.31), budgets, layers)


def _fill(store: Store, row: SearchRow, budgets: Sequence[Constraint]) -> None:
    """A search that learns (ddpg) or does not (random)."""
    generator = np.random.default_rng([row.seed, len(row.name)])
    for number in range(row.evaluations):
        learned = max(0.0, number / row.evaluations - 1 / 3) if row.algorithm == "ddpg" else 0.0
        share = float(np.clip(generator.normal(0.46 + 0.05 * learned, 0.03), 0.2, 0.53))
        accuracy = 0.9 - math.exp(-6 * share) + 0.12 * learned - abs(generator.normal(0.0, 0.16 * (1.1 - learned)))
        _add(store, row.name, number, share, float(np.clip(accuracy, 0.1, 0.99)), budgets)


def _add(store: Store, search: str, number: int, share: float, accuracy: float, budgets: Sequence[Constraint]) -> None:
    cost = {name: value * share if name == "latency_s" else float(round(value * share)) for name, value in FULL.items()}
    policy = CompressionPolicy.from_keep({"conv": min(1.0, share)})
    evaluation = Evaluation(accuracy, cost, violation(cost, budgets), 0.8, images=IMAGES)
    store.add(EvaluationRow(search, number, policy, evaluation, reward=accuracy))
