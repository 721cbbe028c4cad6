"""Optuna's samplers over points of channels and bits."""

import subprocess
import sys

import pytest

from automl.searchers.points.base import PointProblem, PointSearcher
from automl.searchers.points.optuna import (
    CMAESPoints,
    GPOptions,
    GPPoints,
    NSGA2Options,
    NSGA2Points,
    OptunaOptions,
    TPEPoints,
)
from automl.testing.points import PointSearcherConformance
from search_spaces.errors import InputError


class TestTPE(PointSearcherConformance):
    evaluations = 24

    def make(self, problem: PointProblem) -> PointSearcher:
        return TPEPoints(problem)


class TestCMAES(PointSearcherConformance):
    def make(self, problem: PointProblem) -> PointSearcher:
        return CMAESPoints(problem)


class TestNSGA2(PointSearcherConformance):
    def make(self, problem: PointProblem) -> PointSearcher:
        return NSGA2Points(problem, NSGA2Options(population=6))


class TestGP(PointSearcherConformance):
    evaluations = 8  # it is slow, and slower beside pending proposals; those are the others' to test
    lags = (0,)

    def make(self, problem: PointProblem) -> PointSearcher:
        return GPPoints(problem, GPOptions(startup=6, memory=6))


def test_optuna_is_imported_where_it_is_searched_with() -> None:
    said = "import sys, automl.searchers, automl.searchers.points.optuna; print('optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(
    "make",
    [lambda: OptunaOptions(startup=0), lambda: NSGA2Options(population=1), lambda: GPOptions(startup=20, memory=10)],
)
def test_options_out_of_range_are_refused(make) -> None:
    with pytest.raises(InputError, match="optuna: "):
        make()
