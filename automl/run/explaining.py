"""How the best policy is explained: losses by the run's evaluators, side by side, costs by what priced its searches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from automl.config import Config
from automl.costs.by_layer import costs_by_layer
from automl.costs.latency import EstimatedPrices, open_prices, priced_by_table
from automl.problem import Problem
from automl.run.directory import RunDirectory
from automl.run.explanation import IMAGES, BudgetUse, Explanation, explain, policies_to_try
from backends.base import HardwareBackend
from search_spaces.objective import UNITS, Evaluation
from search_spaces.policy import CompressionPolicy

Watch = Callable[[int, int], None]


def explain_best(
    problem: Problem, directory: RunDirectory, best: CompressionPolicy, crew: Any, watch: Watch
) -> Explanation:
    """Find out what each layer of the best policy loses alone, and what it costs.

    Args:
        problem: that was searched.
        directory: of the run.
        best: the policy.
        crew: see `automl.orchestration.crew.evaluators`.
        watch: told how many of how many networks are evaluated, several times a second.

    Raises:
        TrimtabError: an evaluator died of a layer, twice.
    """
    from automl.orchestration.crew import spread

    images = len(problem.data.val)  # type: ignore[arg-type]  # torch's Dataset declares no length
    share = min(1.0, IMAGES / images)
    free = dict.fromkeys(UNITS, 0.0)  # whether a layer alone keeps a budget is not asked
    jobs = {
        name: lambda worker, policy=policy: worker.evaluate.remote(policy, free, share)
        for name, policy in policies_to_try(problem.graph, best).items()
    }
    found: dict[str, Evaluation] = spread(jobs, crew, lambda _, finished: watch(len(finished), len(jobs)))
    bound = problem.config.budget is not None and not problem.config.search.given
    limits = {constraint.metric: constraint.limit if bound else None for constraint in problem.constraints}
    before, after = problem.graph, problem.graph.apply(best)
    with _backend(problem, directory) as backend:
        totals = [backend.estimate(graph).as_metrics() for graph in (before, after)]
        layers = [costs_by_layer(graph, list(limits), backend) for graph in (before, after)]
    return explain(
        before,
        best,
        found,
        images=round(share * images),
        budgets=[BudgetUse(metric, limits[metric], *(total[metric] for total in totals)) for metric in limits],
        costs={
            metric: {name: (cost, layers[1][metric][name]) for name, cost in by_name.items()}
            for metric, by_name in layers[0].items()
        },
    )


@contextmanager
def _backend(problem: Problem, directory: RunDirectory) -> Iterator[HardwareBackend]:
    """What priced the searches: all operators of the best policy are known to it."""
    config: Config = problem.config
    if not config.priced_by_table:
        yield problem.backend
        return
    with open_prices(config.measure) as prices:
        known = EstimatedPrices(prices, directory.estimates_file) if config.measure.estimate_missing else prices
        yield priced_by_table(config.measure, problem.graph, known)
