"""The conformance kit of searchers over points: one subclass, and a new searcher is tested.

class TestMine(PointSearcherConformance):
    def make(self, problem):
        return MySearcher(problem)
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache

import numpy as np
from safetensors.numpy import load, save

from automl.searchers.base import Searcher
from automl.searchers.points.base import PointProblem, PointSearcher
from automl.testing.checks import global_state, refused, require
from automl.testing.problems import cifar_resnet
from backends.point_prices import PointPrices
from search_spaces.building import SpaceOptions, build_space
from search_spaces.objective import Constraint, Evaluation
from search_spaces.policy import CompressionPolicy
from search_spaces.space import Point, SearchSpace


@cache
def small_space() -> tuple[SearchSpace, PointPrices]:
    """Channels and bits of a small residual network."""
    space = build_space(cifar_resnet(8), SpaceOptions(weight_bits=(2, 4, 8), activation_bits=(4, 8)))
    return space, PointPrices(space)


@cache
def elastic_space() -> tuple[SearchSpace, PointPrices]:
    """Channels and kernels of the same network: what a supernet is trained for."""
    space = build_space(cifar_resnet(8), SpaceOptions(kernel=(1,), round_to=8))
    return space, PointPrices(space)


class AdditiveAccuracy:
    """An accuracy whose optimum is known: a share for every step down, random but fixed.

    Args:
        space: whose points are evaluated.
        seed: of the shares.
    """

    def __init__(self, space: SearchSpace, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.space = space
        self.losses = [
            np.concatenate([np.cumsum(generator.exponential(size=count - 1))[::-1], [0.0]]) for count in space.counts
        ]
        self._scale = sum(float(loss[0]) for loss in self.losses)

    def __call__(self, point: Point) -> float:
        """In [0, 1]."""
        lost = sum(float(loss[number]) for loss, number in zip(self.losses, point.tolist(), strict=True))
        return 1.0 - lost / self._scale


class PointSearcherConformance(ABC):
    """What every `PointSearcher` promises, and every other searcher of points.

    Attributes:
        evaluations: of a search of the kit; enough to reach every phase of the algorithm.
        lags: how many proposals may be pending when the next one is asked for.
        ratios: the budgets, of the network's MACs and of its bytes.
        divergences: whether evaluations know one.
        random: whether another seed makes another search.
    """

    evaluations = 40
    lags: Sequence[int] = (0, 4)
    ratios = (0.6, 0.15)
    divergences = False
    random = True

    @abstractmethod
    def make(self, problem: PointProblem) -> Searcher:
        """A new searcher."""

    def space(self) -> tuple[SearchSpace, PointPrices]:
        """What is searched, and what it costs."""
        return small_space()

    def problem(self, seed: int = 0, ratios: Sequence[float] | None = None) -> PointProblem:
        """The kit's."""
        space, prices = self.space()
        whole = prices(space.greatest[None])
        graph = space.graph
        limits = (graph.macs, graph.weight_bytes)
        metrics = ("macs", "weight_bytes")
        constraints = tuple(
            Constraint(metric, ratio * limit)  # type: ignore[arg-type]
            for metric, ratio, limit in zip(metrics, ratios or self.ratios, limits, strict=True)
        )
        require(float(whole["macs"][0]) == graph.macs, "the whole network has other MACs")
        return PointProblem(space, constraints, prices, seed, self.evaluations)

    def test_the_same_seed_proposes_the_same_and_another_does_not(self) -> None:
        """For every lag."""
        for lag in self.lags:
            first, second = (self._searched(self.problem(), lag) for _ in range(2))
            require(first == second, f"two searches of one seed differ at lag {lag}")
        differs = self._searched(self.problem(1), 0) != self._searched(self.problem(2), 0)
        require(differs or not self.random, "seeds make no difference")

    def test_every_proposal_is_a_new_policy_of_the_space_within_the_budget(self) -> None:
        """Priced by the graph itself; of a searcher that comes from above the budget, only the last has to keep it."""
        problem = self.problem()
        searcher = self.make(problem)
        keeps = searcher.keeps_budget if isinstance(searcher, PointSearcher) else True
        made = self._made(problem, 2)
        proposals = [policy for policy, _ in made]
        require(len({(policy.digest, share) for policy, share in made}) == len(made), "a policy was proposed twice")
        require(made[-1][1] == 1.0, "the last proposal is looked at on a part of the images, and no result")
        for policy in proposals:
            graph = problem.space.graph.apply(policy)
            require(problem.space.contains(policy), "a proposal is not in the space")
            costs = {"macs": graph.macs, "weight_bytes": graph.weight_bytes}
            if not keeps and policy is not proposals[-1]:
                continue
            for constraint in problem.constraints:
                require(constraint.violation(costs) == 0.0, f"{costs} is above {constraint}")

    def test_restored_equals_uninterrupted(self) -> None:
        """At several boundaries, through the bytes of a snapshot, proposals pending."""
        lag = max(self.lags)
        whole = self._searched(self.problem(), lag)
        for boundary in (1, lag + 1, self.evaluations // 2, self.evaluations - 1):
            require(self._searched(self.problem(), lag, boundary) == whole, f"restored after {boundary}, it differs")

    def test_it_finds_more_than_its_first_proposals(self) -> None:
        """The best of a search is better than the median of its first proposals, all of them within the budget."""
        problem, accuracy = self.problem(), AdditiveAccuracy(self.space()[0])
        points = [problem.space.encode(policy) for policy in self._searched(problem, 0)]
        values = [accuracy(point) for point in points if problem.kept(point[None])[0]]
        require(max(values) > float(np.median(values[: max(1, len(values) // 4)])), "nothing better was found")

    def test_failed_evaluations_are_learnt_from(self) -> None:
        """They are no reason to stop."""
        searcher = self.make(self.problem())
        for _ in range(self.evaluations):
            searcher.tell(searcher.ask(), Evaluation(0.0, {}, 0.0, 0.0, error="NaN"))

    def test_a_budget_that_cannot_be_kept_is_refused(self) -> None:
        """With the least that it can come to."""
        refused(lambda: self.make(self.problem(ratios=(0.6, 0.001))))

    def test_nothing_else_is_touched(self) -> None:
        """The global generators, torch's number of threads."""
        before = global_state()
        self._searched(self.problem(), 0)
        require(global_state() == before, "a global generator or the number of threads was changed")

    def _searched(self, problem: PointProblem, lag: int, restored: int | None = None) -> list[CompressionPolicy]:
        """The proposals of a search, interrupted and restored after so many were told."""
        return [policy for policy, _ in self._made(problem, lag, restored)]

    def _made(
        self, problem: PointProblem, lag: int, restored: int | None = None
    ) -> list[tuple[CompressionPolicy, float]]:
        """The same, each with the share of the images that it is to be evaluated on."""
        searcher, accuracy = self.make(problem), AdditiveAccuracy(problem.space)
        made: list[tuple[CompressionPolicy, float]] = []
        told, spent = 0, 0.0
        while True:
            more = spent < self.evaluations - 1e-6 and not searcher.finished
            if more and len(made) - told <= lag:
                policy = searcher.ask()
                made.append((policy, searcher.share))
                spent += searcher.share
                continue
            if told == len(made):
                return made
            policy, share = made[told]
            found = accuracy(problem.space.encode(policy))
            divergence = 1.0 - found if self.divergences else None
            searcher.tell(policy, Evaluation(found, {}, 0.0, 0.0, divergence=divergence, share=share))
            told += 1
            if told == restored:
                arrays, values = searcher.state()
                arrays, values = load(save(arrays)), json.loads(json.dumps(values))
                searcher = self.make(problem)
                searcher.restore(arrays, values)
