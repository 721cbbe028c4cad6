"""The exact solver against trying every point."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.searchers.exact import solve
from backends.point_prices import Factor
from search_spaces.errors import InputError


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 4), min_size=2, max_size=5), st.floats(0.2, 0.9))
def test_the_optimum_among_all_points(seed: int, sizes: list[int], tightness: float) -> None:
    generator = np.random.default_rng(seed)
    losses = [generator.normal(size=size) for size in sizes]
    pairs = [(first, first + 1) for first in range(len(sizes) - 1)]
    factors = [Factor(pair, generator.random((2, *(sizes[each] for each in pair)))) for pair in pairs]
    factors.append(Factor((0,), generator.random((2, sizes[0]))))
    if len(sizes) > 3:
        factors.append(Factor((0, 2, 3), generator.random((2, sizes[0], sizes[2], sizes[3]))))
    limits = tightness * np.array([len(factors), len(factors)])

    def cost(point: tuple[int, ...]) -> np.ndarray:
        parts = [factor.costs[(slice(None), *(point[each] for each in factor.decisions))] for factor in factors]
        return np.sum(parts, axis=0)

    def loss(point: tuple[int, ...]) -> float:
        return float(sum(each[number] for each, number in zip(losses, point, strict=True)))

    feasible = [point for point in product(*map(range, sizes)) if (cost(point) <= limits).all()]
    found = solve(losses, factors, limits)
    if not feasible:
        assert found is None
        return
    assert found is not None
    assert (cost(tuple(found)) <= limits * (1 + 1e-6)).all()
    best = sorted(feasible, key=loss)
    assert loss(tuple(found)) == pytest.approx(loss(best[0]), abs=1e-6)
    second = solve(losses, factors, limits, forbidden=[found])
    if len(best) > 1:
        assert second is not None
        assert tuple(second) != tuple(found)
        assert loss(tuple(second)) == pytest.approx(loss(best[1]), abs=1e-6)
    else:
        assert second is None


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(InputError, match="one is not"):
        solve([[0.0, np.nan]], [], [])
    with pytest.raises(InputError, match="a factor's costs are finite"):
        solve([[0.0, 1.0]], [Factor((0,), np.array([[1.0, np.inf]]))], [1.0])
    with pytest.raises(InputError, match="a factor's costs are finite"):
        solve([[0.0, 1.0]], [Factor((0,), np.array([[1.0, 1.0, 1.0]]))], [1.0])
