"""The process that times operators: what it answers, and that nothing an operator does gets past it."""

import os
import signal
import subprocess
import sys
import threading
import time
from itertools import chain, count, repeat
from pathlib import Path

import numpy as np
import psutil
import pytest
from operator_engines import Toy

from backends.clock import pace
from backends.lease import exclusive_lease, shared_lease
from backends.operator_timing import OperatorTimer
from backends.operator_worker import Prepared, timing
from backends.recipes import OperatorFailure, Timing
from search_spaces.errors import TrimtabError

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(TESTS))


@pytest.fixture
def timer():
    with OperatorTimer("operator_engines:ToyEngine", {"colour": "red"}, threads=2, timeout_s=20.0) as timer:
        yield timer


def process_of(result: Timing) -> int:
    return int(result.structure.split()[0])


def operators_before(result: Timing) -> int:
    return int(result.structure.split()[1]) - 1


def gone(pid: int) -> bool:
    """Whether the process ends within a few seconds."""
    for _ in range(500):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_a_timing_holds_what_was_measured(timer):
    result = timer.measure(Toy())
    assert 0 < result.p10_s <= result.latency_s <= result.p90_s < 1e-3
    assert result.error == 0.0
    assert result.runs >= 100
    assert result.runs % 4 == 0
    assert result.structure.endswith("2 2 2 {'colour': 'red'}")


def test_the_process_lives_from_operator_to_operator(timer):
    first, second = timer.measure(Toy()), timer.measure(Toy("prints"))
    assert process_of(first) == process_of(second) != os.getpid()
    assert operators_before(second) == 1


def test_what_an_engine_prints_does_not_reach_the_answers(timer, capfd):
    assert timer.measure(Toy("prints")).latency_s > 0
    assert timer.measure(Toy()).latency_s > 0
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("operator", "told"),
    [
        (Toy("crashes"), "killed by signal 11"),
        (Toy("exits"), "ended with status 3 (what it thought at last)"),
    ],
)
def test_a_crash_costs_the_operator_and_the_process(timer, operator, told):
    before = timer.measure(Toy())
    with pytest.raises(OperatorFailure, match="compiler") as caught:
        timer.measure(operator)
    assert told in caught.value.reason
    after = timer.measure(Toy())
    assert operators_before(after) == 0
    assert gone(process_of(before))


@pytest.mark.parametrize(
    ("operator", "told"),
    [
        (Toy("raises"), "ValueError: no rule for this operator"),
        (Toy("answers wrongly", 2.0), "relative error 0.001 against torch, at most 0.0001 allowed"),
        (Toy("answers with nan"), "relative error inf"),
    ],
)
def test_a_refusal_costs_the_operator_alone(timer, operator, told):
    before = timer.measure(Toy())
    with pytest.raises(OperatorFailure) as caught:
        timer.measure(operator)
    assert told in caught.value.reason
    assert "\n" not in caught.value.reason
    assert process_of(timer.measure(Toy())) == process_of(before)


def test_numbers_within_the_tolerance_are_right(timer):
    assert timer.measure(Toy("answers wrongly", 0.1)).error == pytest.approx(0.1 / 1998, rel=0.1)


@pytest.mark.parametrize("behaviour", ["hangs", "hangs when timed"])
def test_a_hang_is_stopped(behaviour):
    with OperatorTimer("operator_engines:ToyEngine", timeout_s=0.5) as timer:
        before = timer.measure(Toy())
        with pytest.raises(OperatorFailure, match=r"did not finish within 0\.5 s"):
            timer.measure(Toy(behaviour))
        assert gone(process_of(before))
        with exclusive_lease(timeout_s=1.0):  # nobody holds the machine any more
            pass
        assert operators_before(timer.measure(Toy())) == 0


def test_a_process_killed_while_idle_is_replaced(timer):
    before = process_of(timer.measure(Toy()))
    os.kill(before, signal.SIGKILL)
    os.waitid(os.P_PID, before, os.WEXITED | os.WNOWAIT)
    assert process_of(timer.measure(Toy())) != before


def test_the_process_is_replaced_after_so_many_operators():
    with OperatorTimer("operator_engines:ToyEngine", recycle_after=2) as timer:
        results = [timer.measure(Toy()) for _ in range(3)]
    assert [operators_before(result) for result in results] == [0, 1, 0]
    assert process_of(results[0]) == process_of(results[1]) != process_of(results[2])


def test_the_process_is_replaced_when_it_grows():
    bound = 300 << 20
    with OperatorTimer("operator_engines:ToyEngine", memory_bytes=bound) as timer:
        small = [timer.measure(Toy()) for _ in range(2)]
        grown = timer.measure(Toy("grows", bound))
        assert {process_of(result) for result in small} == {process_of(grown)}
        assert process_of(timer.measure(Toy())) != process_of(grown)


def test_the_machine_is_leased_while_timing_and_only_then():
    with OperatorTimer("operator_engines:ToyEngine", timeout_s=60.0) as timer:
        timer.measure(Toy())
        with shared_lease():
            with pytest.raises(OperatorFailure, match="ValueError"):  # whoever computes does not hold up compiling
                timer.measure(Toy("raises"))
            results: list[Timing] = []
            measuring = threading.Thread(target=lambda: results.append(timer.measure(Toy())))
            measuring.start()
            measuring.join(0.3)
            assert not results  # but timing
        measuring.join(20.0)
        assert len(results) == 1


def test_threads_take_turns(timer):
    results: list[Timing] = []
    threads = [threading.Thread(target=lambda: results.append(timer.measure(Toy()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(operators_before(result) for result in results) == [0, 1, 2, 3]


def test_a_closed_timer_has_no_process_and_says_so(timer):
    pid = process_of(timer.measure(Toy()))
    timer.close()
    timer.close()
    assert gone(pid)
    with pytest.raises(TrimtabError, match="closed"):
        timer.measure(Toy())


def test_closing_ends_a_measurement_under_way(timer):
    timer.measure(Toy())
    closing = threading.Timer(0.3, timer.close)
    closing.start()
    with pytest.raises(TrimtabError, match="closed"):
        timer.measure(Toy("hangs"))
    closing.join()


@pytest.mark.parametrize(
    ("engine", "told"),
    [("operator_engines:Missing", "No module named 'compiler'"), ("no_such_module:Engine", "no_such_module")],
)
def test_an_engine_that_does_not_load_is_no_operators_fault(engine, told):
    with OperatorTimer(engine) as timer, pytest.raises(TrimtabError, match=told):
        timer.measure(Toy())


def test_the_process_dies_with_its_parent_whatever_it_is_doing():
    code = (
        "from operator_engines import Toy\n"
        "from backends.operator_timing import OperatorTimer\n"
        "timer = OperatorTimer('operator_engines:ToyEngine')\n"
        "print(timer.measure(Toy()).structure, flush=True)\n"
        "timer.measure(Toy('hangs'))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline().split()[0])
        parent.kill()
    assert gone(pid)


class Clock:
    """Time goes by only in calls; each takes as long as the durations say, times the pace of a drifting processor."""

    def __init__(self, monkeypatch, drift: float = 0.0):
        self.now, self._drift = 1.0, drift
        monkeypatch.setattr("backends.operator_worker.time.perf_counter", lambda: self.now)
        monkeypatch.setattr("backends.operator_worker.reading", lambda: (self.now, self.now))
        monkeypatch.setattr("backends.operator_worker.pace", lambda: 1e-6 * self.slowness)
        monkeypatch.setattr("backends.operator_worker.preemptions", lambda: 0)

    @property
    def slowness(self) -> float:
        return 1.0 + self._drift * self.now

    def call(self, durations):
        def wait():
            self.now += next(durations) * self.slowness

        return wait

    def timing(self, durations, *elsewhere) -> Timing:
        calls = [self.call(each) for each in (durations, *elsewhere)]
        return timing(Prepared(calls[0], 2, 0.0, "hash", tuple(calls[1:])))


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_the_figure_is_of_one_execution(clock):
    result = clock.timing(repeat(4e-4))
    assert [result.p10_s, result.latency_s, result.p90_s] == pytest.approx([2e-4] * 3)
    assert result.pace_s == pytest.approx(1e-6)


def test_a_busy_machine_is_measured_longer_and_its_steadiest_round_counts(clock):
    generator = np.random.default_rng(0)
    busy = clock.timing(chain((4e-4 * generator.uniform(1.0, 3.0) for _ in range(80)), repeat(4e-4)))
    assert busy.runs > clock.timing(repeat(4e-4)).runs
    assert busy.latency_s == pytest.approx(2e-4)


def test_a_machine_that_stays_busy_is_given_up_on(clock):
    generator = np.random.default_rng(0)
    result = clock.timing(4e-4 * generator.uniform(1.0, 3.0) for _ in count())
    assert result.p90_s > 1.15 * result.p10_s
    assert result.p10_s < result.latency_s < result.p90_s


def test_samples_that_another_process_broke_into_do_not_count(clock, monkeypatch):
    monkeypatch.setattr("backends.operator_worker.preemptions", lambda: clock.preempted)
    clock.preempted, generator = 0, np.random.default_rng(0)

    def durations():
        while True:
            broken = generator.random() < 0.2
            clock.preempted += broken
            yield 5e-3 if broken else 4e-4

    result = clock.timing(durations())
    assert result.latency_s == result.p10_s == pytest.approx(2e-4)
    assert result.p90_s == pytest.approx(2e-4)


def test_a_processor_that_changes_its_pace_does_not_blur_the_figure(monkeypatch):
    drifting = Clock(monkeypatch, drift=5.0)
    result = drifting.timing(repeat(4e-4))
    assert result.p90_s / result.p10_s < 1.01
    assert result.latency_s / result.pace_s == pytest.approx(2e-4 / 1e-6, rel=1e-2)
    assert result.pace_s > 5e-6


def test_several_places_in_memory_are_averaged(clock):
    result = clock.timing(repeat(4e-4), repeat(4.4e-4), repeat(4.2e-4), repeat(4.2e-4))
    assert result.latency_s == pytest.approx(2.1e-4)


def test_the_pace_of_this_machine_is_steady_while_it_is_read():
    paces = [pace() for _ in range(50)]
    assert 0 < min(paces) <= np.median(paces) < 1e-3
