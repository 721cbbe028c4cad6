"""Prices of operators: measured once, published at once, refused after two failures."""

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from backends.latency_table import DeviceKey, Entry, LatencyTable
from backends.lease import shared_lease
from backends.operator_prices import Estimate, OperatorPrices, RefusedOperatorError
from backends.recipes import OperatorFailure, Recipe, Timing
from backends.regression import LatencyRegression
from search_spaces.errors import TrimtabError

DEVICE = DeviceKey("tvm", "A processor", "x86-64-v4", 1, "apache-tvm 0.27", "0123abcd")


@dataclass(frozen=True)
class Operator:
    size: int
    kind: str = "conv2d"

    @property
    def recipe(self) -> str:
        return f"{self.kind}({self.size})"

    @property
    def work(self) -> float:
        return float(self.size)

    traffic = 0.0


def seconds(operator: Recipe) -> float:
    return operator.work * 1e-6


@dataclass
class FakeTimer:
    """Takes what the operator's size says; `faults` has what goes wrong, call by call, with a recipe."""

    faults: dict[str, list[BaseException | Callable[[Timing], Timing] | None]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    seen: Callable[[Recipe], object] = lambda _: None

    def measure(self, recipe: Recipe) -> Timing:
        self.calls.append(recipe.recipe)
        self.seen(recipe)
        fault = (self.faults.get(recipe.recipe) or [None]).pop(0)
        if isinstance(fault, BaseException):
            raise fault
        timing = Timing(seconds(recipe), seconds(recipe), seconds(recipe), 10, 1e-6, "cafe")
        return fault(timing) if fault else timing

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def table(tmp_path: Path) -> Iterator[LatencyTable]:
    with LatencyTable(tmp_path / "table.sqlite", DEVICE) as opened:
        yield opened


def operators(*sizes: int) -> list[Operator]:
    return [Operator(size) for size in sizes]


def test_what_is_missing_is_measured_once_in_the_order_given(table: LatencyTable) -> None:
    timer = FakeTimer()
    prices = OperatorPrices(table, timer)
    assert prices.latencies(operators(3, 1, 3, 2, 1)) == {f"conv2d({n})": n * 1e-6 for n in (3, 1, 2)}
    assert timer.calls == ["conv2d(3)", "conv2d(1)", "conv2d(2)"]
    assert prices.missing(operators(5, 3, 4, 5)) == operators(5, 4)
    assert prices.latencies(operators(2, 4)) == {"conv2d(2)": 2e-6, "conv2d(4)": 4e-6}
    assert timer.calls[3:] == ["conv2d(4)"]
    assert table.entries()["conv2d(2)"] == Entry(2e-6, 2e-6, 2e-6, 10, 1e-6, "cafe", "conv2d", 2.0, 0.0)
    assert prices.latencies([]) == {}


def test_each_entry_is_published_before_the_next_is_measured(table: LatencyTable) -> None:
    known: list[list[str]] = []
    timer = FakeTimer({"conv2d(3)": [KeyboardInterrupt()]}, seen=lambda _: known.append(sorted(table.entries())))
    with pytest.raises(KeyboardInterrupt):
        OperatorPrices(table, timer).latencies(operators(1, 2, 3, 4))
    assert known == [[], ["conv2d(1)"], ["conv2d(1)", "conv2d(2)"]]
    assert sorted(table.entries()) == ["conv2d(1)", "conv2d(2)"]


def test_a_failure_costs_one_retry(table: LatencyTable) -> None:
    timer = FakeTimer({"conv2d(1)": [OperatorFailure("hung for 20 s")]})
    assert OperatorPrices(table, timer).latencies(operators(1)) == {"conv2d(1)": 1e-6}
    assert timer.calls == ["conv2d(1)"] * 2


def test_two_failures_are_a_refusal_that_names_operator_and_reasons(table: LatencyTable) -> None:
    timer = FakeTimer({"conv2d(2)": [OperatorFailure("killed by\nsignal 11"), OperatorFailure("hung for 20 s")]})
    prices = OperatorPrices(table, timer)
    with pytest.raises(RefusedOperatorError) as caught:
        prices.latencies(operators(1, 2, 3))
    said = str(caught.value)
    assert said.startswith("operator conv2d(2) is refused: measuring it failed 2 times")
    assert "(killed by signal 11; hung for 20 s)" in said
    assert "\n" not in said
    assert isinstance(caught.value, TrimtabError)
    assert sorted(table.entries()) == ["conv2d(1)"]
    with shared_lease(0):  # the machine is free again
        pass
    with pytest.raises(RefusedOperatorError):  # at once, and for the others no time is spent
        prices.latencies(operators(3, 2))
    assert timer.calls == ["conv2d(1)", "conv2d(2)", "conv2d(2)"]
    assert list(prices.refused) == ["conv2d(2)"]


def test_the_same_reason_is_told_once_and_a_refusal_crosses_processes() -> None:
    error = RefusedOperatorError("conv2d", "conv2d(2)", ["hung", "hung"])
    assert "failed 2 times (hung)" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.kind, again.recipe, again.reasons) == (
        str(error),
        "conv2d",
        "conv2d(2)",
        ("hung", "hung"),
    )


def test_a_later_session_tries_a_refused_operator_again(table: LatencyTable) -> None:
    with pytest.raises(RefusedOperatorError):
        OperatorPrices(table, FakeTimer({"conv2d(1)": [OperatorFailure("x")] * 2})).latencies(operators(1))
    assert OperatorPrices(table, FakeTimer()).latencies(operators(1)) == {"conv2d(1)": 1e-6}


def test_what_another_session_could_measure_is_refused_no_longer(table: LatencyTable) -> None:
    prices = OperatorPrices(table, FakeTimer({"conv2d(1)": [OperatorFailure("x")] * 2}))
    with pytest.raises(RefusedOperatorError):
        prices.latencies(operators(1))
    OperatorPrices(table, FakeTimer()).latencies(operators(1))
    assert prices.latencies(operators(1, 2)) == {"conv2d(1)": 1e-6, "conv2d(2)": 2e-6}


def test_figures_that_are_none_do_not_enter(table: LatencyTable) -> None:
    wrong: list[BaseException | Callable[[Timing], Timing] | None] = [
        lambda timing: replace(timing, latency_s=float("nan")),
        lambda timing: replace(timing, runs=0),
    ]
    with pytest.raises(RefusedOperatorError, match="nan"):
        OperatorPrices(table, FakeTimer({"conv2d(1)": wrong})).latencies(operators(1))
    assert table.entries() == {}


def test_filling_goes_on_past_refusals(table: LatencyTable) -> None:
    timer = FakeTimer({"conv2d(1)": [OperatorFailure("x")] * 2})
    prices = OperatorPrices(table, timer)
    told: list[tuple[int, int, float]] = []
    refused = prices.fill(operators(1, 2, 3), lambda *progress: told.append(progress))
    assert [error.recipe for error in refused] == ["conv2d(1)"]
    assert [(done, total) for done, total, _ in told] == [(1, 3), (2, 3), (3, 3)]
    assert all(left >= 0 for _, _, left in told)
    assert told[-1][2] == 0
    assert sorted(table.entries()) == ["conv2d(2)", "conv2d(3)"]
    assert [error.recipe for error in prices.fill(operators(1, 2))] == ["conv2d(1)"]
    assert timer.calls == ["conv2d(1)", "conv2d(1)", "conv2d(2)", "conv2d(3)"]


def test_what_another_process_measured_meanwhile_is_not_measured_again(tmp_path: Path, table: LatencyTable) -> None:
    theirs = Entry(9e-6, 9e-6, 9e-6, 10, 0.0, "beef", "conv2d", 2.0, 0.0)
    with LatencyTable(tmp_path / "table.sqlite", DEVICE) as other:
        timer = FakeTimer(seen=lambda _: other.publish("conv2d(2)", theirs))
        assert OperatorPrices(table, timer).latencies(operators(1, 2)) == {"conv2d(1)": 1e-6, "conv2d(2)": 9e-6}
    assert timer.calls == ["conv2d(1)"]


def test_evaluators_get_in_between_two_turns_of_measuring(table: LatencyTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.operator_prices._TURN_S", 0.0)
    free: list[bool] = []

    def pause(_: float) -> None:
        with shared_lease(0):
            free.append(True)

    def measured(_: Recipe) -> None:
        with pytest.raises(TrimtabError), shared_lease(0):
            pass

    monkeypatch.setattr("backends.operator_prices.time.sleep", pause)
    OperatorPrices(table, FakeTimer(seen=measured)).latencies(operators(1, 2, 3))
    assert free == [True, True]


def test_where_time_presses_the_missing_are_predicted_and_marked(table: LatencyTable) -> None:
    timer = FakeTimer()
    prices = OperatorPrices(table, timer)
    prices.latencies(operators(*range(1, 9)))
    found = prices.estimates(operators(3, 20), LatencyRegression.fit(table.entries()))
    assert found["conv2d(3)"] == Estimate(3e-6, measured=True)
    assert found["conv2d(20)"].latency_s == pytest.approx(20e-6)
    assert not found["conv2d(20)"].measured
    assert "conv2d(20)" not in timer.calls
