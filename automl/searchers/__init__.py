"""Search algorithms behind one ask/tell interface."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from automl.predictors.samples import Sample
from automl.searchers.agent_options import AGENTS, AgentOptions, agent_options
from automl.searchers.base import Searcher, State
from automl.searchers.given import GivenSearcher, given_policies
from automl.searchers.options import parse_options
from automl.searchers.points.base import PointProblem
from automl.searchers.points.random import RandomPoints
from automl.searchers.points.uniform import UniformPoints
from automl.searchers.random import RandomSearcher
from automl.searchers.uniform import UniformSearcher
from automl.searchers.walks import walk_over
from backends.layer_prices import FloatArray
from backends.point_prices import PointPrices
from envs.channel_pruning import ChannelPruningWalk
from envs.layerwise import LayerwiseWalk
from envs.pricing import Cost, CountedCost, TightestCost
from envs.reward import Reward, accuracy_change, find_reward
from search_spaces.channel_space import ChannelSpace
from search_spaces.errors import InputError, did_you_mean
from search_spaces.objective import Constraint, Metric
from search_spaces.space import Prices, SearchSpace

__all__ = ["Searcher", "State", "given_policies", "make_searcher", "searcher_names"]


@dataclass(frozen=True)
class _Search:
    """What `make_searcher` was asked for."""

    space: SearchSpace
    constraints: tuple[Constraint, ...]
    seed: int
    evaluations: int
    mode: str
    reward: str
    faithful: bool
    options: Mapping[str, Any]
    costs: Sequence[Cost | None]
    prices: Prices | None
    objectives: tuple[Metric, ...]
    agent: State | None
    prior: Sequence[FloatArray] | None
    known: Sequence[Sample]

    @property
    def constraint(self) -> Constraint:
        """The budget, or of several the first, in whose unit `bound` says how much of the tightest is spent."""
        return self.constraints[0]

    @property
    def asked(self) -> Prices:
        """What points cost; where nobody said, what can be counted."""
        return PointPrices(self.space) if self.prices is None else self.prices

    @property
    def bound(self) -> Cost | None:
        """The cost that an algorithm bounds which knows a single budget; None where that is counted.

        Raises:
            InputError: several budgets cannot be kept together.
        """
        if len(self.constraints) == 1:
            return self.costs[0]
        if (reason := self.space.unreachable(self.constraints, self.asked)) is not None:
            raise InputError(reason)
        graph = self.space.graph
        pairs = zip(self.costs, self.constraints, strict=True)
        costs = [CountedCost(graph, each.metric) if cost is None else cost for cost, each in pairs]
        return TightestCost(costs, [each.limit for each in self.constraints])

    @property
    def points(self) -> PointProblem:
        """The problem of an algorithm that decides on points.

        Raises:
            InputError: the mode has no budget to keep.
        """
        if self.mode != "resource":
            raise InputError(f"mode {self.mode!r} is the agents' alone; searches over points keep a budget: 'resource'")
        return PointProblem(self.space, self.constraints, self.asked, self.seed, self.evaluations, self.objectives)


@dataclass(frozen=True)
class _NoOptions:
    """Of searchers that have nothing to set."""


def _agent(name: str) -> Callable[[_Search], Searcher]:
    """What makes the searcher of an agent."""

    def make(search: _Search) -> Searcher:
        from automl.searchers.agents import AgentSearcher  # torch and stable-baselines3 only where they are needed

        options = agent_options(
            name,
            search.options,
            search.evaluations,
            faithful=search.faithful,
            bits=not search.space.channels_only,
            begun=search.agent is not None,
        )
        searcher = AgentSearcher(_walk(search, options), _reward(search), search.seed, options)
        if search.agent is not None:
            searcher.begin_with(*search.agent)
        return searcher

    return make


def _walk(search: _Search, options: AgentOptions) -> LayerwiseWalk:
    faithful, step_code = search.faithful, options.step_code
    if not search.space.channels_only:
        points = search.points
        return walk_over(
            points.space,
            points.constraints,
            points.prices,
            faithful=faithful,
            step_code=step_code,
            spend=not _reward(search).counts_cost,
        )
    return ChannelPruningWalk(
        search.space.channels,
        search.constraint,
        mode=search.mode,
        faithful=faithful,
        step_code=step_code,
        cost=search.bound,
    )


def _reward(search: _Search) -> Reward:
    """The one asked for; of a faithful agent of bits HAQ's, whose zero does not matter to who subtracts a baseline."""
    if search.faithful and not search.space.channels_only:
        return accuracy_change(whole=1.0)
    return find_reward(search.reward, search.mode)


def _random(search: _Search) -> Searcher:
    parse_options(_NoOptions(), "random", search.options)
    if not search.space.channels_only:
        return RandomPoints(search.points)
    walk = ChannelPruningWalk(search.space.channels, search.constraint, mode=search.mode, cost=search.bound)
    return RandomSearcher(walk, find_reward(search.reward, search.mode), search.seed)


def _uniform(search: _Search) -> Searcher:
    parse_options(_NoOptions(), "uniform", search.options)
    if not search.space.channels_only:
        return UniformPoints(search.points)
    return UniformSearcher(
        search.space.channels, search.constraint, find_reward(search.reward, search.mode), search.bound
    )


def _over_points(name: str, module: str, searcher: str, options: str) -> Callable[[_Search], Searcher]:
    """What makes a searcher over points; its module is imported when it is asked for, and Optuna with it."""

    def make(search: _Search) -> Searcher:
        found = import_module(f"automl.searchers.points.{module}")
        given = parse_options(getattr(found, options)(), name, search.options)
        made: Searcher = getattr(found, searcher)(search.points, given)
        return made

    return make


def _exact(search: _Search) -> Searcher:
    from automl.searchers.points.exact import Exact, ExactOptions

    options = parse_options(ExactOptions(), "exact", search.options)
    return Exact(search.points, options, search.prior)


def _gradient(search: _Search) -> Searcher:
    from automl.searchers.points.gradient import Gradient, GradientOptions

    return Gradient(search.points, parse_options(GradientOptions(), "gradient", search.options), search.prior)


def _once_for_all(search: _Search) -> Searcher:
    from automl.searchers.points.once_for_all import OnceForAll, OnceForAllOptions  # torch where it is needed

    options = parse_options(OnceForAllOptions(), "once_for_all", search.options)
    return OnceForAll(search.points, options, search.known)


def _given(search: _Search) -> Searcher:
    return GivenSearcher(search.space.graph, given_policies(search.options))


@dataclass(frozen=True)
class _Entry:
    """A searcher.

    Attributes:
        text: what it is, in a line.
        make: makes one.
    """

    text: str
    make: Callable[[_Search], Searcher]


_SEARCHERS: Mapping[str, _Entry] = {
    "auto": _Entry(
        "sensitivities, their exact solution, then what a surrogate expects most of; the default",
        _over_points("auto", "auto", "Auto", "AutoOptions"),
    ),
    "exact": _Entry(
        "sensitivities and the points whose losses add up to least, by integer programming (HAWQ-V3: Yao et al. 2021)",
        _exact,
    ),
    "gradient": _Entry(
        "distributions over choices, trained by gradient on their mixture (DARTS: Liu et al. 2019, Cai et al. 2019)",
        _gradient,
    ),
    "once_for_all": _Entry(
        "evolution on accuracies that a predictor learns, from a supernet's sub-networks first (OFA: Cai et al. 2020)",
        _once_for_all,
    ),
    "ddpg": _Entry("AMC's and HAQ's agent, DDPG (He et al. 2018, Wang et al. 2019)", _agent("ddpg")),
    "td3": _Entry("TD3: DDPG with two critics and a slower actor (Fujimoto et al. 2018)", _agent("td3")),
    "sac": _Entry("soft actor-critic: an agent that explores by entropy (Haarnoja et al. 2018)", _agent("sac")),
    "ppo": _Entry("proximal policy optimisation: it learns by batches (Schulman et al. 2017)", _agent("ppo")),
    "random": _Entry("random policies of the same budget", _random),
    "uniform": _Entry("the same level for all layers, the highest that meets the budget", _uniform),
    "evolution": _Entry(
        "regularised evolution over channels, bits, zeros and ranks (Real et al. 2019)",
        _over_points("evolution", "evolution", "Evolution", "EvolutionOptions"),
    ),
    "nsga2": _Entry(
        "NSGA-II with the space's own moves: accuracy and cost at once (Deb et al. 2002)",
        _over_points("nsga2", "nsga2", "Nsga2", "Nsga2Options"),
    ),
    "annealing": _Entry(
        "simulated annealing over neighbouring policies (Kirkpatrick et al. 1983)",
        _over_points("annealing", "annealing", "Annealing", "AnnealingOptions"),
    ),
    "greedy": _Entry(
        "NetAdapt: from the whole network down by the cheapest cuts (Yang et al. 2018)",
        _over_points("greedy", "greedy", "Greedy", "GreedyOptions"),
    ),
    "tpe": _Entry(
        "Optuna's tree-structured Parzen estimator (Bergstra et al. 2011)",
        _over_points("tpe", "optuna", "TPEPoints", "OptunaOptions"),
    ),
    "cma_es": _Entry("Optuna's CMA-ES (Hansen 2016)", _over_points("cma_es", "optuna", "CMAESPoints", "OptunaOptions")),
    "optuna_nsga2": _Entry("Optuna's NSGA-II", _over_points("optuna_nsga2", "optuna", "NSGA2Points", "NSGA2Options")),
    "gp": _Entry(
        "Optuna's Gaussian process; the most thought for each proposal",
        _over_points("gp", "optuna", "GPPoints", "GPOptions"),
    ),
    "given": _Entry("the policies of search.options.policies; `trimtab compress` takes one from a file", _given),
}


def searcher_names() -> list[tuple[str, str]]:
    """Name and one-line description of every searcher."""
    return [(name, entry.text) for name, entry in _SEARCHERS.items()]


def make_searcher(
    name: str,
    *,
    space: SearchSpace | ChannelSpace,
    constraint: Constraint | Sequence[Constraint],
    seed: int,
    evaluations: int,
    mode: str = "resource",
    reward: str = "accuracy",
    faithful: bool = False,
    options: Mapping[str, Any] = {},
    cost: Cost | Sequence[Cost | None] | None = None,
    prices: Prices | None = None,
    objectives: Sequence[Metric] = (),
    agent: State | None = None,
    prior: Sequence[FloatArray] | None = None,
    known: Sequence[Sample] = (),
) -> Searcher:
    """The searcher of that name.

    Args:
        name: see `searcher_names`.
        space: what is decided; where that is channels alone, their space will do.
        constraint: the budget, or several that are all kept.
        seed: of everything random.
        evaluations: how many proposals the search will have evaluated; schedules stretch to it.
        mode: "resource" keeps the budget, "accuracy" has no hard limit.
        reward: by name, see `envs.reward`.
        faithful: as published, where that differs from what works best: AMC's "ddpg" over channels, HAQ's over bits.
        options: of the searcher.
        cost: of the constraint's metric, or of each one's; None where it is counted. A latency cannot be.
        prices: of points; by default what can be counted.
        objectives: costs that are minimised beside the accuracy, where the algorithm looks for a front.
        agent: state of an agent's search that was made elsewhere, whose networks this one begins with.
        prior: a number for every choice of every decision: for "exact" its loss, and none is measured; for "gradient"
            its logit.
        known: sub-networks whose accuracies are known from elsewhere, which "once_for_all" learns from.

    Raises:
        InputError: an unknown name or option, a value out of range, or a budget below the cheapest policy.
    """
    if name not in _SEARCHERS:
        raise InputError(f"there is no search algorithm {name!r}{did_you_mean(name, _SEARCHERS)}")
    if isinstance(space, ChannelSpace):
        space = SearchSpace.of_channels(space)
    if agent is not None and name not in AGENTS:
        raise InputError(f"search.init_from is for agents ({', '.join(AGENTS)}), got search.algorithm {name!r}")
    constraints = (constraint,) if isinstance(constraint, Constraint) else tuple(constraint)
    costs = cost if isinstance(cost, Sequence) else [cost, *[None] * (len(constraints) - 1)]
    search = _Search(
        space,
        constraints,
        seed,
        evaluations,
        mode,
        reward,
        faithful,
        options,
        costs,
        prices,
        tuple(objectives),
        agent,
        prior,
        known,
    )
    return _SEARCHERS[name].make(search)
