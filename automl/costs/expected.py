"""What a policy costs on average, its decisions drawn independently: differentiable in their probabilities.

Where a cost is a sum over layers, so is its expectation, exactly: over tables of the few decisions that settle each
layer. A latency by a table of measured operators is no such sum (nor is a table over many decisions small): its
prices at random points are fitted by a term for every choice and one for each pair of decisions about the same layer.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from automl.searchers.separation import separated
from backends.layer_prices import FloatArray, IntArray
from backends.point_prices import Factor, PointPrices
from search_spaces.objective import Constraint
from search_spaces.space import SearchSpace

TABLES = 2**20
"""Entries of all tables up to which they are computed."""
POINTS_A_TERM = 3
MOST_POINTS = 512
"""Random points that prices are fitted on."""
RIDGE = 1e-3
"""Share of the points' number that is added to the diagonal of the normal equations."""


class ExpectedCosts:
    """Expected costs as shares of their budgets.

    Args:
        parts: factors whose sum some of the costs are, each [budgets, choices of its first decision, ...], with the
            limits of these costs in their units.
    """

    def __init__(self, parts: Sequence[tuple[Sequence[Factor], Sequence[float]]]) -> None:
        self._parts = [
            [(each.decisions, torch.from_numpy((each.costs.T / np.array(limits)).T).float()) for each in factors]
            for factors, limits in parts
        ]

    def __call__(self, probabilities: Sequence[Tensor]) -> Tensor:
        """The expectation of every budget's cost, as a share of the budget, [budgets] in the order of the parts.

        Args:
            probabilities: of the choices of every decision, each [choices].
        """
        found = []
        for part in self._parts:
            total = []
            for decisions, costs in part:
                for number in reversed(decisions):
                    costs = costs @ probabilities[number]
                total.append(costs)
            found.append(torch.stack(total).sum(dim=0))
        return torch.cat(found)


def expected_costs(prices: PointPrices, constraints: Sequence[Constraint], seed: int) -> ExpectedCosts:
    """The expected costs of a space's points beside their budgets, those that are sums first.

    Args:
        prices: of the points.
        constraints: the budgets.
        seed: of the random points that prices are fitted on, where costs are no sums.

    Raises:
        InputError: the hardware cannot run one of the layers.
    """
    sums = [each for each in constraints if each.metric in prices.summed]
    if prices.entries([each.metric for each in sums]) > TABLES:
        sums = []
    others = [each for each in constraints if each not in sums]
    parts: list[tuple[Sequence[Factor], Sequence[float]]] = []
    if sums:
        factors = separated(prices.factors([each.metric for each in sums]))
        parts.append((factors, [each.limit for each in sums]))
    if others:
        factors = fitted(prices, [each.metric for each in others], seed)
        parts.append((factors, [each.limit for each in others]))
    return ExpectedCosts(parts)


def fitted(prices: PointPrices, metrics: Sequence[str], seed: int) -> list[Factor]:
    """Factors whose sum is nearest to the prices of random points, by ridge regression.

    Args:
        prices: asked for so many points as there are terms, a few times over.
        metrics: the costs.
        seed: of the points.
    """
    space = prices.space
    pairs = sorted({pair for scope in prices.scopes() for pair in combinations(scope, 2)})
    terms = int(space.counts.sum()) + len(pairs)
    generator = np.random.default_rng(seed)
    count = min(POINTS_A_TERM * terms, MOST_POINTS)
    points = np.stack([space.greatest, space.least, *(space.sample(generator) for _ in range(count))])
    costs = prices(points)
    wanted = np.stack([costs[metric] for metric in metrics], axis=1)
    centre = wanted.mean(axis=0)
    features = np.concatenate(list(_features(space, pairs, points)), axis=1)
    means = features.mean(axis=0)
    centred = features - means
    penalty = RIDGE * len(points) * np.eye(terms)
    found = np.linalg.solve(centred.T @ centred + penalty, centred.T @ (wanted - centre))
    return list(_factors(space, pairs, found, centre - means @ found))


def _levels(count: int) -> FloatArray:
    """Numbers of choices between 0, the cheapest, and 1."""
    return np.linspace(0.0, 1.0, count)


def _features(space: SearchSpace, pairs: Sequence[tuple[int, int]], points: IntArray) -> Iterator[FloatArray]:
    """The terms of points [P, D]: one-hot choices, then the product of each pair's levels."""
    counts = space.counts.tolist()
    for number, count in enumerate(counts):
        yield np.eye(count)[points[:, number]]
    level = [_levels(count)[points[:, number]] for number, count in enumerate(counts)]
    yield np.stack([np.zeros(len(points)), *(level[one] * level[two] for one, two in pairs)], axis=1)[:, 1:]


def _factors(
    space: SearchSpace, pairs: Sequence[tuple[int, int]], found: FloatArray, constant: FloatArray
) -> Iterator[Factor]:
    """The fit [terms, budgets] as factors."""
    counts = space.counts.tolist()
    yield Factor((), constant)
    own, others = np.split(found, [sum(counts)])
    for number, part in enumerate(np.split(own, np.cumsum(counts)[:-1])):
        yield Factor((number,), part.T)
    for (one, two), weight in zip(pairs, others, strict=True):
        yield Factor((one, two), np.multiply.outer(weight, np.outer(_levels(counts[one]), _levels(counts[two]))))
