"""The stand-in for measurements: exact where latency is what it assumes, and honest about its error elsewhere."""

from dataclasses import dataclass

import numpy as np
import pytest

from backends.latency_table import Entry
from backends.regression import LatencyRegression
from search_spaces.errors import TrimtabError


@dataclass(frozen=True)
class Operator:
    kind: str
    work: float
    traffic: float
    recipe: str = ""


def entry(kind: str, work: float, traffic: float, latency_s: float) -> Entry:
    return Entry(latency_s, latency_s, latency_s, 10, 0.0, "cafe", kind, work, traffic)


def measured(count: int, *, spread: float = 0.0, seed: int = 0) -> dict[str, Entry]:
    """Convolutions that take 2 us + 20 ps a multiply-add + 50 ps a byte, times lognormal noise."""
    rng = np.random.default_rng(seed)
    entries = {}
    for index in range(count):
        work, traffic = 10 ** rng.uniform(5, 8), 10 ** rng.uniform(4, 7)
        noise = float(rng.lognormal(0.0, spread)) if spread else 1.0
        entries[f"conv2d({index})"] = entry("conv2d", work, traffic, (2e-6 + work * 2e-11 + traffic * 5e-11) * noise)
    return entries


def test_it_finds_the_cost_of_calls_work_and_traffic() -> None:
    regression = LatencyRegression.fit(measured(30))
    assert regression.error < 1e-6
    assert regression.entries == 30
    for work, traffic in ((0.0, 0.0), (1e9, 0.0), (0.0, 1e8), (3e6, 2e5)):
        predicted = regression.predict(Operator("conv2d", work, traffic))
        assert predicted == pytest.approx(2e-6 + work * 2e-11 + traffic * 5e-11, rel=1e-6)


def test_kinds_have_their_own_costs() -> None:
    entries = measured(30) | {f"pool({i})": entry("pool", 1e3 * i, 1e3 * i, 1e-5 * (i + 1)) for i in range(10)}
    regression = LatencyRegression.fit(entries)
    assert regression.predict(Operator("pool", 20e3, 20e3)) == pytest.approx(21e-5)
    assert regression.predict(Operator("conv2d", 20e3, 20e3)) == pytest.approx(2e-6 + 20e3 * 7e-11)
    assert set(regression.errors) == {"conv2d", "pool"}


def test_a_rare_or_unknown_kind_is_predicted_from_all() -> None:
    regression = LatencyRegression.fit(measured(30) | {"pool(0)": entry("pool", 1e6, 1e5, 1.0)})
    everything = LatencyRegression.fit(measured(30) | {"x": entry("conv2d", 1e6, 1e5, 1.0)})
    for kind in ("pool", "never seen"):
        predicted = regression.predict(Operator(kind, 1e6, 1e5))
        assert predicted == pytest.approx(everything.predict(Operator("conv2d", 1e6, 1e5)))
    assert regression.errors["pool"] > 0.5  # nobody could have told from the others
    assert regression.error < regression.errors["pool"]


def test_the_error_is_that_on_entries_it_had_not_seen() -> None:
    regression = LatencyRegression.fit(measured(200, spread=0.2))
    fresh = measured(1000, spread=0.2, seed=1)
    misses = [
        abs(regression.predict(Operator(found.kind, found.work, found.traffic)) / found.latency_s - 1)
        for found in fresh.values()
    ]
    assert regression.error == pytest.approx(float(np.mean(misses)), rel=0.15)
    assert 0.1 < regression.error < 0.25


def test_it_depends_on_what_was_measured_not_on_the_order() -> None:
    entries = measured(40, spread=0.2)
    backwards = dict(reversed(entries.items()))
    ours, theirs = LatencyRegression.fit(entries), LatencyRegression.fit(backwards)
    assert (ours.error, ours.errors) == (theirs.error, theirs.errors)
    operator = Operator("conv2d", 1e6, 1e5)
    assert ours.predict(operator) == theirs.predict(operator)


def test_predictions_are_never_negative_and_never_fall_with_work_or_traffic() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        entries = {
            str(i): entry("conv2d", *(10 ** rng.uniform(0, 9, size=2)), float(10 ** rng.uniform(-6, -2)))
            for i in range(12)
        }
        regression = LatencyRegression.fit(entries)
        grid = [[regression.predict(Operator("conv2d", w, t)) for t in (0, 1e4, 1e9)] for w in (0, 1e4, 1e9)]
        assert np.min(grid) >= 0
        assert np.min(np.diff(grid, axis=0)) >= 0
        assert np.min(np.diff(grid, axis=1)) >= 0


def test_one_measurement_says_nothing_of_the_error() -> None:
    regression = LatencyRegression.fit(measured(1))
    assert regression.error == float("inf")
    assert regression.predict(Operator("conv2d", 1e6, 1e5)) > 0


def test_two_measurements_are_tested_on_each_other() -> None:
    assert 0 <= LatencyRegression.fit(measured(2)).error < float("inf")


def test_without_measurements_there_is_no_prediction() -> None:
    with pytest.raises(TrimtabError, match="no operator has been measured"):
        LatencyRegression.fit({})
