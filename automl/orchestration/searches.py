"""Which searches a run makes, and the searcher of each."""

from collections.abc import Mapping, Sequence
from typing import Any

from automl.config import Config
from automl.config_sections import SearchSection
from automl.costs.pricing import BACKEND, cost_of, point_prices
from automl.predictors.samples import Sample
from automl.run.store import SearchRow
from automl.searchers import given_policies, make_searcher
from automl.searchers.base import Searcher, State
from automl.searchers.prior import Prior
from backends.base import HardwareBackend
from search_spaces.objective import Constraint
from search_spaces.space import SearchSpace


def searches(config: Config) -> list[SearchRow]:
    """The searches of a run: the algorithm and random search for every seed, and the uniform policy.

    Policies that are given are evaluated once each, and have the uniform policy beside them.

    Raises:
        InputError: policies are to be given, and none are.
    """
    how = config.search
    uniform = SearchRow("uniform", "uniform", 0, 1)
    if how.given:
        return [SearchRow("given", "given", 0, len(given_policies(how.options))), uniform]
    rows = {}
    for algorithm in dict.fromkeys((how.algorithm, "random")):
        for seed in how.seeds:
            count = 1 if algorithm == "uniform" else how.evaluations
            row = SearchRow(search_name(algorithm, seed), algorithm, seed, count)
            rows[row.name] = row
    return list({**rows, "uniform": uniform}.values())


def make_search(
    config: Config,
    space: SearchSpace,
    constraints: Sequence[Constraint],
    search: SearchRow,
    backend: HardwareBackend = BACKEND,
    agent: State | None = None,
    prior: Prior | None = None,
    known: Sequence[Sample] = (),
) -> Searcher:
    """A fresh searcher for one of a run's searches.

    Args:
        config: of the run.
        space: what is decided.
        constraints: that the searcher keeps to.
        search: which of the run's searches.
        backend: that prices networks; counting alone where it was not asked for more.
        agent: what the run's agent begins with, see `initial_agent`.
        prior: of the run's own algorithm, where `wants_prior` says that one is wanted.
        known: sub-networks that the run's own algorithm learns from, see `make_searcher`.

    Raises:
        InputError: there is no such algorithm, option or reward.
    """
    how = config.search
    own = search.algorithm == how.algorithm
    return make_searcher(
        search.algorithm,
        space=space,
        constraint=constraints,
        seed=search.seed,
        evaluations=search.evaluations,
        mode=how.mode,
        reward=config.reward_name,
        faithful=how.faithful and own,
        options=_options(config) if own else {},
        cost=[cost_of(space.graph, backend, each.metric) for each in constraints],
        prices=point_prices(space, backend),
        objectives=how.objectives,  # type: ignore[arg-type]  # the config has checked the names
        agent=agent if own else None,
        prior=prior.values if own and prior is not None else None,
        known=known if own else (),
    )


def _options(config: Config) -> Mapping[str, Any]:
    """Of the run's own algorithm; the kind of predictor is that of its supernet where it is not said."""
    how = config.search
    if how.algorithm != "once_for_all" or config.supernet is None:
        return how.options
    return {"predictor": config.supernet.predictor.kind, **how.options}


def wants_prior(how: SearchSection) -> bool:
    """Whether the run's searches want a number for every choice of every decision before they start.

    That is the loss by the Hessian, for "exact" where it measures none, and a logit for "gradient".
    """
    return how.algorithm == "gradient" or (how.algorithm == "exact" and how.options.get("sensitivity") == "hessian")


def search_name(algorithm: str, seed: int) -> str:
    """Name of a search in the store."""
    return algorithm if algorithm in ("uniform", "given") else f"{algorithm}-{seed}"
