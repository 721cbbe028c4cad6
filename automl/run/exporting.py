"""A run's best network as files."""

from collections.abc import Mapping
from typing import Any

from automl.configured import example_input
from automl.problem import Problem
from automl.run.directory import RunDirectory
from automl.run.finalists import choose_finalists
from automl.run.work import load_finalist
from search_spaces.policy import beside_pruning, layer_to_json


def export_best(problem: Problem, directory: RunDirectory, summary: Mapping[str, Any]) -> None:
    """Write the best network to the run's `best/`."""
    from automl.export import export_network

    config = problem.config
    best = next(finalist for finalist in choose_finalists(problem, directory) if finalist.name == "best")
    figures = summary["best"]
    export_network(
        load_finalist(problem, best, directory.finalists / "best"),
        directory.best,
        policy=best.policy,
        architecture={
            "model": config.model.name,
            "args": config.model.args,
            "classes": problem.data.classes,
            "input_shape": list(problem.data.input_shape),
            "resolution": best.policy.resolution,
            "units": problem.kept(best.policy),
            "layers": {name: layer_to_json(layer) for name, layer in beside_pruning(best.policy).items()},
        },
        example_input=example_input(problem.data, best.policy.resolution),
        data={"name": config.data.name, "args": config.data.args},
        results={
            **{name: figures[name] for name in ("accuracy", "macs", "params", "weight_bytes", "search_accuracy")},
            "metric": config.metric,
            "budget": summary["budget"],
        },
        threads=config.measure.threads,
        measure_latency=config.measure.backend != "none",
        device=config.measure.remote,
    )
