from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.objective import Constraint, Evaluation, hypervolume, pareto_front

POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30)


@given(st.integers(2, 4).flatmap(lambda size: st.lists(st.tuples(*[st.integers(0, 5)] * size), max_size=30)))
def test_front_equals_pairwise_domination(points: list[tuple[int, ...]]) -> None:
    front = pareto_front(points)
    for index, point in enumerate(points):
        beaten = any(
            all(one <= here for one, here in zip(other[:-1], point[:-1], strict=True))
            and other[-1] >= point[-1]
            and other != point
            for other in points
        )
        first = points.index(point) == index
        assert (index in front) == (not beaten and first)
    assert [points[index][:-1] for index in front] == sorted(points[index][:-1] for index in front)


def test_violation_is_relative_and_zero_within() -> None:
    budget = Constraint("macs", 100.0)
    assert budget.violation({"macs": 100.0}) == 0.0
    assert budget.violation({"macs": 150.0}) == pytest.approx(0.5)
    assert budget.unit == "MACs"


def test_a_failed_evaluation_is_never_feasible() -> None:
    assert Evaluation(0.9, {"macs": 1.0}, 0.0, 0.1).feasible
    assert not Evaluation(0.0, {"macs": 1.0}, 0.0, 0.1, error="NaN").feasible
    assert not Evaluation(0.9, {"macs": 1.0}, 1e-12, 0.1).feasible


def _cells(points: list[tuple[int, ...]], reference: tuple[int, ...]) -> int:
    """Unit cells of the grid that some point beats: at no less of any cost, and at no more accuracy."""
    *least, accuracies = (range(10) for _ in reference)
    return sum(
        any(
            all(entry <= at < limit for entry, at, limit in zip(point, cell, reference[:-1], strict=False))
            and reference[-1] <= cell[-1] < point[-1]
            for point in points
        )
        for cell in product(*least, accuracies)
    )


@given(POINTS, st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_hypervolume_of_two_objectives_equals_the_area_counted(
    points: list[tuple[int, ...]], reference: tuple[int, ...]
) -> None:
    assert hypervolume(points, reference) == _cells(points, reference)


@settings(max_examples=40)
@given(st.lists(st.tuples(*[st.integers(0, 9)] * 3), max_size=8), st.tuples(*[st.integers(0, 9)] * 3))
def test_hypervolume_of_three_objectives_equals_the_cubes_counted(
    points: list[tuple[int, ...]], reference: tuple[int, ...]
) -> None:
    assert hypervolume(points, reference) == _cells(points, reference)


@settings(max_examples=50)
@given(st.lists(st.tuples(*[st.integers(0, 9)] * 4), max_size=12), st.tuples(*[st.integers(0, 9)] * 4))
def test_a_point_more_never_lowers_the_hypervolume(points: list[tuple[int, ...]], point: tuple[int, ...]) -> None:
    reference = (8, 9, 9, 1)
    before, after = hypervolume(points, reference), hypervolume([point, *points], reference)
    assert after >= before
    beaten = any(point == other or _beats(other, point) for other in points)
    within = all(entry < limit for entry, limit in zip(point[:-1], reference[:-1], strict=True)) and point[-1] > 1
    assert (after > before) == (within and not beaten)


def _beats(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return all(a <= b for a, b in zip(one[:-1], other[:-1], strict=True)) and one[-1] >= other[-1]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=30))
def test_the_front_has_the_hypervolume_of_all_points(points: list[tuple[float, float]]) -> None:
    front = [points[index] for index in pareto_front(points)]
    assert hypervolume(front, (1.0, 0.0)) == pytest.approx(hypervolume(points, (1.0, 0.0)))


def test_hypervolume_by_hand() -> None:
    assert hypervolume([(1.0, 0.5), (2.0, 0.75)], (4.0, 0.0)) == 0.5 * 3.0 + 0.25 * 2.0
    assert hypervolume([], (4.0, 0.0)) == 0.0
    assert hypervolume([(4.0, 1.0), (1.0, 0.0), (float("nan"), 1.0)], (4.0, 0.0)) == 0.0  # on the edge, or nowhere
    with pytest.raises(ValueError, match="zip"):
        hypervolume([(1.0, 2.0, 3.0)], (4.0, 0.0))
