"""Optuna's samplers as searchers over points: TPE, CMA-ES, NSGA-II and Gaussian processes.

A sampler proposes what it likes; that is balanced, so that it spends the budget and does not exceed it, and the study
is told the balanced point, not the sampled one: a model of what was never evaluated is a wrong model. So the sampled
trial is told to have failed, which every sampler ignores, and the balanced point is added to the study as a running
trial, that others may see while its result is awaited. Every decision is an integer from the cheapest choice to the
one that changes least, as choices are ordered.

The sampler of every proposal is a new one, seeded by the seed of the search and the number of the proposal. What one
remembers beside the trials, as the generations of CMA-ES and NSGA-II, Optuna keeps in the study; a study is restored by
asking it again in the order in which it was asked and told, and is never written down.
"""

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from automl.searchers.base import State
from automl.searchers.points.base import PointProblem, PointSearcher, Result
from automl.searchers.points.moves import balance, exchange
from automl.searchers.points.random import random_point
from search_spaces.errors import InputError
from search_spaces.policy import CompressionPolicy
from search_spaces.space import Point

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.study import Study


@dataclass(frozen=True)
class OptunaOptions:
    """What can be set of any sampler.

    Attributes:
        startup: results before the sampler is listened to; until then there are random points.
    """

    startup: int = 10

    def __post_init__(self) -> None:
        if self.startup < 1:
            raise InputError(f"optuna: startup is at least 1, got {self.startup}")


@dataclass(frozen=True)
class NSGA2Options(OptunaOptions):
    """What can be set; the defaults suit 100 to 400 evaluations (Optuna's population of 50 suits thousands).

    Attributes:
        population: of a generation.
    """

    population: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.population < 2:
            raise InputError(f"optuna: population is at least 2, got {self.population}")


@dataclass(frozen=True)
class GPOptions(OptunaOptions):
    """What can be set.

    Attributes:
        memory: results that the process is fitted to, half of them the best and the rest the latest: the time to fit
            grows with their cube.
    """

    memory: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory < self.startup:
            raise InputError(f"optuna: memory is at least startup, {self.startup}, got {self.memory}")


class OptunaPoints(PointSearcher):
    """One of Optuna's samplers behind the interface of searchers over points.

    Accuracy is maximised. Where the sampler knows constraints, the study is told by which share each point is below
    each budget. The sampler is asked once a proposal: one that was made before is exchanged for one near by.

    Args:
        problem: what is asked.
        options: of the sampler.
    """

    constrained = True
    """Whether the sampler may be told of constraints."""
    generational = False
    """Whether trials depend on when they were asked for, so that a restored study has to be asked again."""
    front = False
    """Whether the sampler takes costs as objectives, too."""

    def __init__(self, problem: PointProblem, options: OptunaOptions = OptunaOptions()) -> None:
        from optuna.distributions import IntDistribution

        super().__init__(problem)
        self.options = options
        self._distributions: dict[str, BaseDistribution] = {
            decision.name: IntDistribution(0, len(decision.choices) - 1) for decision in self.space.decisions
        }
        self._minimised = problem.objectives if self.front else ()
        self._told: list[int] = []  # how many results were known at each proposal
        self._drawn: Point | None = None  # by the sampler, for the proposal that is being made
        self._begin()

    @abstractmethod
    def sampler(self, seed: int) -> "BaseSampler":
        """A new sampler."""

    def propose(self) -> Point:
        """A random point at first, then what the sampler says, balanced; if that will not do, a point near by."""
        if self._drawn is not None:
            return exchange(self.problem, self._drawn, self.generator)
        starting = len(self.results) < self.options.startup
        sampled = self._sample(len(self._told)) if self.generational or not starting else None
        chosen = random_point(self.space, self.generator) if starting or sampled is None else sampled
        self._drawn = balance(self.problem, chosen, self.generator)
        return self._drawn

    def ask(self) -> CompressionPolicy:
        """The next proposal, which the study is told of."""
        self._drawn = None
        policy = super().ask()
        self._told.append(len(self.results))
        self._add(self._pending[-1])
        return policy

    def learn(self, result: Result) -> None:
        """The study is told."""
        costs = self.problem.prices(result.point[None]) if self._minimised else {}
        values = [result.accuracy, *(float(costs[metric][0]) for metric in self._minimised)]
        self._study.tell(self._running.popleft(), values)

    def state(self) -> State:
        """Beside that of every searcher: how many results were known at each proposal."""
        arrays, values = super().state()
        return arrays | {"told": np.array(self._told, dtype=np.int64)}, values

    def restore(self, arrays: Mapping[str, np.ndarray[Any, Any]], values: Mapping[str, Any]) -> None:
        """Take over what `state` gave, and make the study anew."""
        super().restore(arrays, values)
        self._told = arrays["told"].tolist()
        self._remember(self.results)

    def _remember(self, results: Sequence[Result]) -> None:
        """A new study, of these results and of all that is pending, as if it had been asked for them."""
        self._begin()
        points = [*(result.point for result in results), *self._pending]
        waiting = deque(results)
        for number, point in enumerate(points):
            if self.generational:
                while len(results) - len(waiting) < self._told[number]:
                    self.learn(waiting.popleft())
                self._sample(number)
            self._add(point)
        for result in waiting:
            self.learn(result)

    def _begin(self) -> None:
        import optuna

        with _quiet():
            minimised: list[Literal["maximize", "minimize"]] = ["minimize" for _ in self._minimised]
            self._study: Study = optuna.create_study(directions=["maximize", *minimised])
        self._running: deque[int] = deque()  # numbers of the trials whose results are awaited
        self._attributes: Mapping[str, Any] = {}  # what the sampler noted on the trial that it sampled last

    def _sample(self, number: int) -> Point:
        """What the sampler proposes; the study forgets it."""
        from optuna.trial import TrialState

        seed = np.random.SeedSequence([self.problem.seed, number]).generate_state(1)
        self._study.sampler = self.sampler(int(seed[0]))
        trial = self._study.ask(self._distributions)
        failed = self._study.tell(trial, state=TrialState.FAIL)
        self._attributes = failed.system_attrs if self.generational else {}
        return np.array([trial.params[name] for name in self._distributions], dtype=np.int64)

    def _add(self, point: Point) -> None:
        """A trial that runs."""
        from optuna.trial import TrialState, create_trial

        trial = create_trial(
            state=TrialState.RUNNING,
            params=dict(zip(self._distributions, point.tolist(), strict=True)),
            distributions=dict(self._distributions),
            system_attrs=dict(self._attributes),
            constraints=self._violations(point) if self.constrained else None,
        )
        self._study.add_trial(trial)
        self._running.append(len(self._study.get_trials(deepcopy=False)) - 1)

    def _violations(self, point: Point) -> dict[str, float]:
        costs = self.problem.prices(point[None])
        return {each.metric: float(costs[each.metric][0]) / each.limit - 1.0 for each in self.problem.constraints}


class TPEPoints(OptunaPoints):
    """Tree-structured Parzen estimators, one for each decision (Bergstra et al., NeurIPS 2011).

    Optuna's default is a joint one, which stays near its best points: balanced ones it does not get away from.
    """

    def sampler(self, seed: int) -> "BaseSampler":
        """Pending points are taken for bad ones, so that they are not proposed again."""
        from optuna.samplers import TPESampler

        return TPESampler(seed=seed, n_startup_trials=self.options.startup, multivariate=False)


class CMAESPoints(OptunaPoints):
    """Covariance matrix adaptation (Hansen, "The CMA evolution strategy: a tutorial", 2016); it knows no constraints.

    Random points at the start are its first generation.
    """

    constrained = False
    generational = True

    def sampler(self, seed: int) -> "BaseSampler":
        """Of the population that is usual for so many decisions."""
        from optuna.samplers import CmaEsSampler

        return CmaEsSampler(seed=seed, warn_independent_sampling=False)


class NSGA2Points(OptunaPoints):
    """Optuna's NSGA-II (Deb et al., 2002): an elitist genetic algorithm with uniform crossover.

    Of accuracy alone, unless the problem names costs as objectives.
    """

    generational = True
    front = True

    def __init__(self, problem: PointProblem, options: NSGA2Options = NSGA2Options()) -> None:
        super().__init__(problem, options)
        self._population = options.population

    def sampler(self, seed: int) -> "BaseSampler":
        """Of that population."""
        from optuna.samplers import NSGAIISampler

        return NSGAIISampler(seed=seed, population_size=self._population)


class GPPoints(OptunaPoints):
    """A Gaussian process with constrained log expected improvement (Ament et al., NeurIPS 2023)."""

    def __init__(self, problem: PointProblem, options: GPOptions = GPOptions()) -> None:
        super().__init__(problem, options)
        self._memory = options.memory

    def sampler(self, seed: int) -> "BaseSampler":
        """With a process for accuracy and one for each budget."""
        from optuna.samplers import GPSampler

        return GPSampler(seed=seed, n_startup_trials=self.options.startup, warn_independent_sampling=False)

    def ask(self) -> CompressionPolicy:
        """The next proposal, of a process that was fitted to the best and the latest results."""
        excess = len(self.results) - self._memory
        if excess > 0:
            ranked = sorted(range(len(self.results)), key=lambda index: -self.results[index].accuracy)
            forgotten = set(sorted(ranked[self._memory // 2 :])[:excess])
            self._remember([each for index, each in enumerate(self.results) if index not in forgotten])
        return super().ask()


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna says nothing of a new study."""
    from optuna import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)
