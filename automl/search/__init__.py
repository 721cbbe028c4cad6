"""Search algorithms behind one ask/tell interface."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from automl.search.base import Searcher, State
from automl.search.given import GivenSearcher, given_policies
from automl.search.options import parse_options
from automl.search.random import RandomSearcher
from automl.search.uniform import UniformSearcher
from envs.channel_pruning import ChannelPruningWalk
from envs.pricing import Cost
from envs.reward import find_reward
from search_spaces.channel_space import ChannelSpace
from search_spaces.errors import InputError, did_you_mean
from search_spaces.objective import Constraint

if TYPE_CHECKING:
    from automl.search.agents import DDPGOptions

__all__ = ["Searcher", "State", "ddpg_options", "given_policies", "make_searcher", "searcher_names"]


@dataclass(frozen=True)
class _Search:
    """What `make_searcher` was asked for."""

    space: ChannelSpace
    constraint: Constraint
    seed: int
    evaluations: int
    mode: str
    reward: str
    faithful: bool
    options: Mapping[str, Any]
    cost: Cost | None


@dataclass(frozen=True)
class _NoOptions:
    """Of searchers that have nothing to set."""


def ddpg_options(options: Mapping[str, Any], evaluations: int, faithful: bool) -> "DDPGOptions":
    """The agent's hyperparameters: the published ones if faithful, else those tuned for the number of evaluations.

    Raises:
        InputError: an unknown option, or a value out of range.
    """
    from automl.search.agents import DDPGOptions  # torch and stable-baselines3 only where they are needed

    given = parse_options(DDPGOptions(), "ddpg", options)
    if faithful:
        return given
    warmup = given.warmup if "warmup" in options else None
    return parse_options(DDPGOptions.tuned(evaluations, warmup), "ddpg", options)


def _ddpg(search: _Search) -> Searcher:
    from automl.search.ddpg import DDPGSearcher

    walk = ChannelPruningWalk(
        search.space,
        search.constraint,
        mode=search.mode,
        faithful=search.faithful,
        step_code=not search.faithful,
        cost=search.cost,
    )
    options = ddpg_options(search.options, search.evaluations, search.faithful)
    return DDPGSearcher(walk, find_reward(search.reward, search.mode), search.seed, options)


def _random(search: _Search) -> Searcher:
    parse_options(_NoOptions(), "random", search.options)
    walk = ChannelPruningWalk(search.space, search.constraint, mode=search.mode, cost=search.cost)
    return RandomSearcher(walk, find_reward(search.reward, search.mode), search.seed)


def _uniform(search: _Search) -> Searcher:
    parse_options(_NoOptions(), "uniform", search.options)
    return UniformSearcher(search.space, search.constraint, find_reward(search.reward, search.mode), search.cost)


def _given(search: _Search) -> Searcher:
    return GivenSearcher(search.space.graph, given_policies(search.options))


_SEARCHERS: Mapping[str, tuple[str, Callable[[_Search], Searcher]]] = {
    "ddpg": ("AMC's agent: DDPG over the layers' keep ratios (He et al. 2018)", _ddpg),
    "random": ("random policies of the same budget", _random),
    "uniform": ("one keep ratio for all layers, the largest that meets the budget", _uniform),
    "given": ("the policies of search.options.policies; `trimtab compress` takes one from a file", _given),
}


def searcher_names() -> list[tuple[str, str]]:
    """Name and one-line description of every searcher."""
    return [(name, description) for name, (description, _) in _SEARCHERS.items()]


def make_searcher(
    name: str,
    *,
    space: ChannelSpace,
    constraint: Constraint,
    seed: int,
    evaluations: int,
    mode: str = "resource",
    reward: str = "accuracy",
    faithful: bool = False,
    options: Mapping[str, Any] = {},
    cost: Cost | None = None,
) -> Searcher:
    """The searcher of that name.

    Args:
        name: see `searcher_names`.
        space: the numbers of units that each channel group may keep.
        constraint: the budget.
        seed: of everything random.
        evaluations: how many proposals the search will have evaluated; schedules stretch to it.
        mode: "resource" keeps the budget, "accuracy" has no hard limit.
        reward: by name, see `envs.reward`.
        faithful: as published, where that differs from what works best; only "ddpg" has such a thing.
        options: of the searcher.
        cost: of the constraint's metric; by default what can be counted is. A latency cannot.

    Raises:
        InputError: an unknown name or option, a value out of range, or a budget below the cheapest policy.
    """
    if name not in _SEARCHERS:
        raise InputError(f"there is no search algorithm {name!r}{did_you_mean(name, _SEARCHERS)}")
    _, make = _SEARCHERS[name]
    return make(_Search(space, constraint, seed, evaluations, mode, reward, faithful, options, cost))
