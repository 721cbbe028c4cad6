"""Which device gets what to do, and which gets nothing more; trackers and workers are made up."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from backends.latency_entries import DeviceKey
from backends.latency_table import LatencyTable
from backends.operator_prices import OperatorPrices, RefusedOperatorError
from backends.recipes import OperatorFailure, SharedTimer, Timing
from backends.remote import fleet as fleet_module
from backends.remote.device import Place, RemoteDevice
from backends.remote.fleet import Fleet
from backends.remote.requests import Compile, Fault, Open, Start, TimeOperator
from backends.worker_process import Late, Lost, Refused
from search_spaces.errors import InputError, TrimtabError

KEY = DeviceKey("tvm", "remote pi", "cortex-a72", 1, "apache-tvm=0.27", "rules")
RIGHT = Timing(2e-6, 1e-6, 3e-6, 10, 1e-7, "code")
WRONG = Fault("it answers wrongly: relative error 0.01")
Behaviour = Callable[[str], Any]


@dataclass(frozen=True)
class Operator:
    recipe: str
    kind: str = "made up"
    work: float = 1.0
    traffic: float = 1.0


@dataclass
class Farm:
    """Devices by name, each with what it answers to an operator; an exception is raised. All are free at first."""

    behaviours: Mapping[str, Behaviour]
    registered: list[str] = field(default_factory=list)
    handed_out: Counter[str] = field(default_factory=Counter)
    lock: threading.Condition = field(default_factory=threading.Condition)
    free: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.registered = list(self.behaviours)
        self.free = list(self.behaviours)

    def devices(self, key: str) -> list[str]:
        assert key == "pi"
        if not self.registered:
            raise InputError("no device of kind 'pi' is registered")
        return self.registered

    def request(self, key: str, wait_s: float) -> Place | None:
        with self.lock:
            if not self.lock.wait_for(lambda: self.free, wait_s):
                return None
            name = self.free.pop(0)
            self.handed_out[name] += 1
        return Place(*name.split(":"), "word")  # type: ignore[arg-type]  # a port as text will do

    def used(self, place: Place, operator: str) -> Any:
        answer = self.behaviours[place.name](operator)
        if isinstance(answer, Lost):
            return answer  # its server does not come back
        with self.lock:
            self.free.append(place.name)
            self.lock.notify()
        return answer


class Worker:
    """Stands in for the process that compiles and talks to devices."""

    farm: Farm
    made: list["Worker"]
    refused: tuple[str, ...] = ()

    def __init__(self, module: str, threads: int) -> None:
        assert module == "backends.remote.worker"
        self.alive = True
        self.compiled = ""
        self.made.append(self)

    def ask(self, request: Any, limit_s: float) -> Any:
        match request:
            case Start():
                return "ready"
            case Compile():
                if request.recipe.recipe in self.refused:
                    raise Refused("ValueError: no rule")
                self.compiled = request.recipe.recipe
                return "compiled"
            case TimeOperator() | Open():
                answer = self.farm.used(request.place, self.compiled)
                if isinstance(answer, Lost):
                    self.alive = False
                if isinstance(answer, Exception):
                    raise answer
                return answer
        return "closed"

    def memory(self) -> int:
        return 1

    def kill(self) -> None:
        self.alive = False

    def end(self) -> None:
        self.alive = False


@pytest.fixture
def farmed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Fleet, Farm]]]:
    """Makes a fleet of made-up devices, given the behaviour of each."""
    opened: list[Fleet] = []

    def make(*behaviours: Behaviour, timeout_s: float = 60.0) -> tuple[Fleet, Farm]:
        farm = Farm({f"10.0.0.{number}:9090": behaviour for number, behaviour in enumerate(behaviours, 1)})
        monkeypatch.setattr(Worker, "farm", farm, raising=False)
        monkeypatch.setattr(Worker, "made", [], raising=False)
        monkeypatch.setattr(fleet_module, "WorkerProcess", Worker)
        monkeypatch.setattr(fleet_module, "Tracker", lambda address, timeout_s: farm)
        opened.append(Fleet(RemoteDevice("127.0.0.1:9190", "pi", "cortex-a72", timeout_s=timeout_s)))
        return opened[-1], farm

    yield make
    for fleet in opened:
        fleet.close()
        assert not any(worker.alive for worker in Worker.made)


def right(_: str) -> Timing:
    return RIGHT


def always(answer: Any) -> Behaviour:
    return lambda _: answer


def test_several_devices_measure_at_once(farmed: Callable[..., tuple[Fleet, Farm]], tmp_path: Path) -> None:
    together = threading.Barrier(3, timeout=20)

    def meeting(_: str) -> Timing:
        together.wait()
        return RIGHT

    fleet, farm = farmed(meeting, meeting, meeting)
    assert isinstance(fleet, SharedTimer)
    operators = [Operator(f"operator({number})") for number in range(6)]
    with LatencyTable(tmp_path / "table.sqlite", KEY) as table:
        assert OperatorPrices(table, fleet).latencies(operators) == {each.recipe: 2e-6 for each in operators}
    assert farm.handed_out == dict.fromkeys(farm.behaviours, 2)
    assert fleet.notices == []


@pytest.mark.parametrize("answer", [WRONG, Late("late"), Lost("the process died"), Refused("RPCError: hung up")])
def test_what_fails_on_one_device_is_done_on_another_and_the_first_is_left_out(
    farmed: Callable[..., tuple[Fleet, Farm]], answer: Any
) -> None:
    fleet, _ = farmed(always(answer), right)
    with pytest.raises(OperatorFailure, match=r"^10\.0\.0\.1:9090: ") as caught:
        fleet.measure(Operator("a"))
    assert fleet.measure(Operator("a")) == RIGHT
    assert fleet.measure(Operator("b")) == RIGHT
    assert list(fleet.left_out) == ["10.0.0.1:9090"]
    (notice,) = fleet.notices
    reason = caught.value.reason.removeprefix("10.0.0.1:9090: ")
    assert notice == f"device 10.0.0.1:9090 of kind 'pi' is left out: {reason}"
    if isinstance(answer, Late):
        assert reason == "it did not answer within 60 s"


def test_nothing_of_a_device_that_answers_wrongly_enters_the_table(
    farmed: Callable[..., tuple[Fleet, Farm]], tmp_path: Path
) -> None:
    fleet, _ = farmed(always(WRONG), right)
    operators = [Operator(f"operator({number})") for number in range(20)]
    with LatencyTable(tmp_path / "table.sqlite", KEY) as table:
        prices = OperatorPrices(table, fleet)
        prices.latencies(operators)
        assert {(entry.latency_s, entry.error) for entry in table.entries().values()} == {(2e-6, 1e-7)}
        assert prices.notices == fleet.notices
    assert len(fleet.notices) == 1


def test_an_operator_that_fails_everywhere_is_refused_and_no_device_left_out(
    farmed: Callable[..., tuple[Fleet, Farm]], tmp_path: Path
) -> None:
    def picky(operator: str) -> Any:
        return WRONG if operator == "bad" else RIGHT

    fleet, _ = farmed(picky, picky)
    with LatencyTable(tmp_path / "table.sqlite", KEY) as table:
        prices = OperatorPrices(table, fleet)
        (refused,) = prices.fill([Operator("bad"), *[Operator(f"operator({number})") for number in range(5)]])
        assert len(table.entries()) == 5
    assert isinstance(refused, RefusedOperatorError)
    assert {reason.split(":")[0] for reason in refused.reasons} == {"10.0.0.1", "10.0.0.2"}
    assert fleet.left_out == {}


def test_a_single_device_is_asked_again(farmed: Callable[..., tuple[Fleet, Farm]]) -> None:
    answers = iter([Refused("RPCError: it stumbled"), RIGHT])
    fleet, _ = farmed(lambda _: next(answers))
    with pytest.raises(OperatorFailure, match="stumbled"):
        fleet.measure(Operator("a"))
    assert fleet.measure(Operator("a")) == RIGHT
    assert fleet.notices == []


def test_a_device_that_fails_again_and_again_is_left_out(farmed: Callable[..., tuple[Fleet, Farm]]) -> None:
    fleet, _ = farmed(always(WRONG))
    for name in "abc":
        assert fleet.left_out == {}
        with pytest.raises(OperatorFailure):
            fleet.measure(Operator(name))
    with pytest.raises(TrimtabError, match=r"no device of kind 'pi' is left \(10\.0\.0\.1:9090: it answers wrongly"):
        fleet.measure(Operator("d"))


def test_an_unfit_device_costs_no_attempt(farmed: Callable[..., tuple[Fleet, Farm]]) -> None:
    fleet, farm = farmed(always(Fault("it runs another TVM", unfit=True)), right)
    assert [fleet.measure(Operator(name)) for name in "abc"] == [RIGHT] * 3
    assert fleet.notices == ["device 10.0.0.1:9090 of kind 'pi' is left out: it runs another TVM"]
    assert farm.handed_out["10.0.0.2:9090"] == 3


def test_where_only_unfit_devices_are_that_is_told(farmed: Callable[..., tuple[Fleet, Farm]]) -> None:
    fleet, _ = farmed(*[always(Fault("it runs another TVM", unfit=True))] * 2)
    with pytest.raises(TrimtabError, match=r"is left \(.*1:9090: it runs another TVM; .*2:9090: it runs another TVM\)"):
        fleet.check()


def test_a_silent_device_alone_ends_the_measuring_with_its_reason(farmed: Callable[..., tuple[Fleet, Farm]]) -> None:
    fleet, _ = farmed(always(Late("late")), timeout_s=0.1)
    with pytest.raises(OperatorFailure):
        fleet.measure(Operator("a"))
    with pytest.raises(
        TrimtabError, match=r"was to be had .* within 0\.1 s \(10\.0\.0\.1:9090: it did not answer with"
    ):
        fleet.measure(Operator("a"))


def test_devices_that_are_all_busy_are_waited_for_no_longer_than_the_limit(
    farmed: Callable[..., tuple[Fleet, Farm]],
) -> None:
    fleet, farm = farmed(right, timeout_s=0.1)
    farm.free.clear()
    with pytest.raises(TrimtabError, match=r"within 0\.1 s \(all are busy, or do not answer\)"):
        fleet.measure(Operator("a"))


def test_a_device_that_is_started_again_is_waited_for(farmed: Callable[..., tuple[Fleet, Farm]]) -> None:
    fleet, farm = farmed(right)
    farm.registered.clear()
    with pytest.raises(InputError, match="registered"):
        fleet.measure(Operator("a"))
    farm.registered.append("10.0.0.1:9090")
    answers = iter([Refused("RPCError: hung up"), RIGHT])
    farm.behaviours = {"10.0.0.1:9090": lambda _: next(answers)}
    with pytest.raises(OperatorFailure):
        fleet.measure(Operator("a"))
    farm.registered.clear()  # it is away for a while, and comes back
    assert fleet.measure(Operator("a")) == RIGHT


def test_what_the_compiler_refuses_is_no_devices_fault(
    farmed: Callable[..., tuple[Fleet, Farm]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, farm = farmed(right)
    monkeypatch.setattr(Worker, "refused", ("bad",))
    for _ in range(4):
        with pytest.raises(OperatorFailure, match="ValueError: no rule"):
            fleet.measure(Operator("bad"))
    assert fleet.measure(Operator("good")) == RIGHT
    assert farm.handed_out.total() == 1
    assert len(Worker.made) == 1


def test_workers_are_used_again_unless_they_died(farmed: Callable[..., tuple[Fleet, Farm]]) -> None:
    answers = iter([RIGHT, WRONG, Lost("it died"), RIGHT])
    fleet, farm = farmed(lambda _: next(answers))
    assert fleet.measure(Operator("a")) == RIGHT
    with pytest.raises(OperatorFailure):
        fleet.measure(Operator("b"))
    assert len(Worker.made) == 1
    with pytest.raises(OperatorFailure):
        fleet.measure(Operator("b"))
    farm.free.append("10.0.0.1:9090")
    assert fleet.measure(Operator("b")) == RIGHT
    assert len(Worker.made) == 2


def test_a_closed_fleet_says_so(farmed: Callable[..., tuple[Fleet, Farm]]) -> None:
    fleet, _ = farmed(right)
    fleet.close()
    with pytest.raises(TrimtabError, match="let go of"):
        fleet.measure(Operator("a"))


def test_checking_goes_on_to_a_device_that_answers(farmed: Callable[..., tuple[Fleet, Farm]]) -> None:
    fleet, _ = farmed(always(Late("late")), always(Lost("it died")), right)
    fleet.check()
    assert set(fleet.left_out) <= {"10.0.0.1:9090", "10.0.0.2:9090"}
    assert [worker.alive for worker in Worker.made] == [False, False, True]
