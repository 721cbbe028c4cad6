import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.objective import Constraint, Evaluation, pareto_front

POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30)


@given(POINTS)
def test_front_equals_pairwise_domination(points: list[tuple[int, int]]) -> None:
    front = set(pareto_front([(float(cost), float(accuracy)) for cost, accuracy in points]))
    for index, (cost, accuracy) in enumerate(points):
        beaten = any(
            other_cost <= cost and other_accuracy >= accuracy and (other_cost, other_accuracy) != (cost, accuracy)
            for other_cost, other_accuracy in points
        )
        first = points.index((cost, accuracy)) == index
        assert (index in front) == (not beaten and first)


def test_violation_is_relative_and_zero_within() -> None:
    budget = Constraint("macs", 100.0)
    assert budget.violation({"macs": 100.0}) == 0.0
    assert budget.violation({"macs": 150.0}) == pytest.approx(0.5)
    assert budget.unit == "MACs"


def test_a_failed_evaluation_is_never_feasible() -> None:
    assert Evaluation(0.9, {"macs": 1.0}, 0.0, 0.1).feasible
    assert not Evaluation(0.0, {"macs": 1.0}, 0.0, 0.1, error="NaN").feasible
    assert not Evaluation(0.9, {"macs": 1.0}, 1e-12, 0.1).feasible
