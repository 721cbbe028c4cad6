"""Costs over many decisions as sums of costs over few."""

import numpy as np

from automl.searchers.separation import separated
from automl.testing.points import small_space
from backends.point_prices import Factor


def test_a_product_with_a_sum_falls_apart_into_pairs() -> None:
    """(a + b) * c, and a constant that goes along with one of them."""
    first, second, third = np.arange(1.0, 4.0), np.arange(2.0, 6.0), np.array([1.0, 5.0])
    costs = (first[:, None, None] + second[None, :, None]) * third + 7.0
    found = separated([Factor((0, 2, 5), costs[None]), Factor((), np.array([3.0]))])
    assert sorted(factor.decisions for factor in found) == [(0, 5), (2, 5)]
    totals = {factor.decisions: factor.costs[0] for factor in found}
    for point in np.ndindex(costs.shape):
        assert totals[0, 5][point[0], point[2]] + totals[2, 5][point[1], point[2]] == costs[point] + 3.0


def test_what_cannot_be_taken_apart_stays() -> None:
    costs = np.random.default_rng(0).random((2, 3, 4))
    (found,) = separated([Factor((1, 4), costs), Factor((4,), np.ones((2, 4)))])
    assert found.decisions == (1, 4)
    assert np.allclose(found.costs, costs + 1.0)


def test_the_sum_is_the_price_of_any_point() -> None:
    space, prices = small_space()
    metrics = ("macs", "weight_bytes")
    found = separated(prices.factors(metrics))
    generator = np.random.default_rng(0)
    points = np.stack([space.sample(generator) for _ in range(50)])
    sums = sum(each.costs[(slice(None), *points[:, list(each.decisions)].T)] for each in found)
    for row, metric in zip(sums, metrics, strict=True):
        assert np.allclose(row, prices(points)[metric], rtol=1e-12)
    assert max(len(each.decisions) for each in found) == 3  # channels read and given, bits
