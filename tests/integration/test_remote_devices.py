"""Devices on loopback, reached by a real tracker and real servers of TVM's RPC; some die, hang or compute wrongly."""

import re
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from rpc_devices import Device, devices
from torch import nn

from automl.cli import BAD_INPUT, DONE, FAILED, main
from automl.export.agreement import compare
from backends.latency_table import LatencyTable
from backends.measuring import TOLERANCE
from backends.operator_prices import OperatorPrices
from backends.recipes import OperatorFailure
from backends.remote.device import Place, RemoteDevice
from backends.remote.fleet import Fleet
from backends.remote.networks import Network, measure_networks
from backends.remote.tracker import Tracker
from backends.table_backend import find_engine, open_prices
from backends.torch_reference import reference_output
from backends.tvm import compile_module
from backends.tvm.kernels.base import Kernel, Span, Window
from backends.tvm.kernels.convolution import Conv2d
from backends.tvm.kernels.elementwise import Elementwise
from backends.tvm.kernels.epilogue import Activation, Epilogue
from backends.tvm.kernels.integer.dense import IntegerDense
from backends.tvm.kernels.movement import Gather
from backends.tvm.target import cpu_for
from search_spaces.errors import TrimtabError

CPU = cpu_for()
PATIENCE_S = 120.0
"""For devices that do answer, on a machine that has much else to do."""


def conv(blocks: int) -> Conv2d:
    lanes = CPU.lanes
    return Conv2d(
        (1, blocks, 6, 6, lanes),
        Span(blocks, lanes, 0),
        blocks,
        (6, 6),
        lanes,
        Window((3, 3), padding=(1, 1, 1, 1)),
        Epilogue(activation=Activation(low=0.0)),
    )


KERNELS: list[Kernel] = [
    conv(1),
    Gather((1, 2, 6, 6, CPU.lanes), 1, (3, 3), (0, 0), (2, 2), 0.0),
    Elementwise((1, 2, 6, 6, CPU.lanes), "add"),
    IntegerDense(1, 32, 20, CPU.lanes),
    conv(2),
    Elementwise((1, 3, 6, 6, CPU.lanes), "add"),
]


@pytest.fixture(scope="module")
def farm() -> Iterator[tuple[str, dict[str, list[Device]]]]:
    """The tracker's address, and the devices by kind."""
    kinds = ["pair:sound", "pair:sound", "dying:sound", "dying:sound", "mixed:sound", "mixed:wrong", "silent:sound"]
    with devices(*kinds, "older:older", "foreign:foreign", "miscounting:miscounting") as (tracker, found):
        by_kind: dict[str, list[Device]] = {}
        for device in found:
            by_kind.setdefault(device.key, []).append(device)
        yield tracker, by_kind


@pytest.fixture
def kind(
    farm: tuple[str, dict[str, list[Device]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[RemoteDevice, list[Device]]]:
    """A kind of device by its key, and those devices."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    tracker, by_kind = farm

    def of(key: str, timeout_s: float = PATIENCE_S) -> tuple[RemoteDevice, list[Device]]:
        return RemoteDevice(tracker, key, CPU.mcpu, timeout_s=timeout_s), by_kind[key]

    return of


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The first two requests for a device wait for each other; names of the devices handed out."""
    handed_out: list[str] = []
    request, barrier, waiting = Tracker.request, threading.Barrier(2), iter(range(2))

    def recorded(self: Tracker, key: str, wait_s: float) -> Place | None:
        if next(waiting, None) is not None:
            barrier.wait(PATIENCE_S)
        place = request(self, key, wait_s)
        if place is not None:
            handed_out.append(place.name)
        return place

    monkeypatch.setattr(Tracker, "request", recorded)
    return handed_out


def sound(table: LatencyTable, recipes: Sequence[Kernel]) -> bool:
    """Whether the table holds just these operators, each checked and timed."""
    entries = table.entries()
    assert all(entry.error <= TOLERANCE and entry.pace_s > 0 and entry.runs > 1 for entry in entries.values())
    return set(entries) == {recipe.recipe for recipe in recipes}


def test_operators_are_measured_on_several_devices_into_a_table_of_their_own(kind, together, tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    device, (first, second) = kind("pair")
    with open_prices("tvm", device=device) as prices:
        prices.latencies(KERNELS)
        assert sound(prices.table, KERNELS)
        assert prices.notices == []
        key = prices.table.device
    assert set(together[:2]) == {first.name, second.name}
    assert list((tmp_path / "scratch").iterdir()) == []
    assert (key.engine, key.cpu, key.target) == ("tvm", "remote pair", CPU.mcpu)
    assert key.digest != find_engine("tvm").device("tvm", 1).digest


@pytest.mark.slow
def test_the_profile_command_fills_the_table_of_a_kind(kind, tmp_path, capfd):
    device, _ = kind("pair")
    reached = f"{{tracker: '{device.tracker}', key: pair, target: {{mcpu: {CPU.mcpu}}}, timeout_s: {PATIENCE_S}}}"
    config = tmp_path / "config.yaml"
    config.write_text(
        "model: {name: lenet5}\n"
        "data: {name: digits, args: {size: 16}}\n"
        "space: {round_to: 8, lower_bound: 0.9}\n"
        "budget: {metric: latency_s, ratio: 0.9}\n"
        f"measure: {{device: {reached}}}\n"
    )
    assert main(["profile", str(config)]) == DONE
    assert re.search(r"operators of the space\s+│\s+\d+, \d+ measured just now", capfd.readouterr().out)
    with open_prices("tvm", device=device) as prices:
        assert len(prices.table.entries()) > 5


def test_one_that_is_killed_in_the_middle_leaves_the_work_to_the_other(kind, together):
    device, found = kind("dying")
    killed = False

    def kill_one(*_: object) -> None:
        nonlocal killed
        if not killed:
            found[0].signal(signal.SIGKILL)
        killed = True

    with open_prices("tvm", device=device) as prices:
        assert prices.fill(KERNELS, kill_one) == []
        assert sound(prices.table, KERNELS)
        for notice in prices.notices:
            assert notice.startswith(f"device {found[0].name} of kind 'dying' is left out: ")


def test_one_that_computes_wrongly_is_left_out_by_name_and_nothing_of_it_kept(kind, together):
    device, (_, wrong) = kind("mixed")
    with open_prices("tvm", device=device) as prices:
        assert prices.fill(KERNELS) == []
        assert sound(prices.table, KERNELS)
        (notice,) = prices.notices
    assert wrong.name in together
    assert notice.startswith(f"device {wrong.name} of kind 'mixed' is left out: it answers wrongly: relative error 0.0")


def test_one_that_hangs_is_given_up_within_its_time(kind, tmp_path):
    device, (silent,) = kind("silent", timeout_s=2.0)
    silent.signal(signal.SIGSTOP)
    try:
        with (
            Fleet(device) as fleet,
            LatencyTable(tmp_path / "table.sqlite", find_engine("tvm").device("tvm", 1)) as table,
        ):
            with pytest.raises(OperatorFailure, match=f"^{silent.name}: it did not answer within 2 s$"):
                fleet.measure(KERNELS[0])
            with pytest.raises(TrimtabError, match=f"{silent.name}: it did not answer within 2 s") as caught:
                OperatorPrices(table, fleet).latencies(KERNELS)
            assert "\n" not in str(caught.value)
            assert table.entries() == {}
    finally:
        silent.signal(signal.SIGCONT)


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("older", r"another TVM than .* here \(it has no vm\.builtin\.check_string_info\); install apache-tvm=="),
        ("foreign", r"another TVM than .* here \(it speaks another protocol\); install apache-tvm=="),
        ("miscounting", r"it computes wrong numbers: \d+ instead of \d+"),
    ],
)
def test_one_that_is_unfit_says_why(kind, key, told):
    device, (unfit,) = kind(key)
    with Fleet(device) as fleet:
        with pytest.raises(TrimtabError, match=told) as caught:
            fleet.check()
        assert "\n" not in str(caught.value)
        assert list(fleet.left_out) == [unfit.name]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20 * 36, 5)).eval()


def test_networks_are_timed_side_by_side_on_one_device(kind, tmp_path):
    device, found = kind("pair")
    x, module = torch.randn(1, 3, 8, 8), network()
    expected = reference_output(module, x)
    networks = []

    def near(output):
        return compare(output, expected, 0.0)

    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        compile_module(module, x, mcpu=device.mcpu).export(tmp_path / name / "model.so")
        networks.append(Network(tmp_path / name / "model.so", near))
    with Fleet(device) as fleet:
        measured = measure_networks(fleet, networks, x.numpy(), rounds=3)
        assert len({each.details["device"] for each in measured}) == 1
        for each in measured:
            assert 0 < each.p10_s <= each.latency_s <= each.p90_s < 1
            assert each.runs >= 3
            assert each.max_error is not None
            assert each.max_error <= TOLERANCE
            assert each.details["device"].removeprefix("pair at ") in {device.name for device in found}
            assert each.details["target"] == CPU.mcpu
        wrong = [networks[0], Network(networks[1].library, lambda output: near(output + np.float32(1)))]
        with pytest.raises(TrimtabError, match=r"could not be measured .* 'pair': .*: network model answers wrongly"):
            measure_networks(fleet, wrong, x.numpy(), rounds=1)
        assert fleet.left_out == {}


@pytest.mark.parametrize(
    ("changed", "code", "told"),
    [
        ("measure.device.key=pear", BAD_INPUT, "no device of kind 'pear' is registered .*; did you mean 'pair'"),
        ("measure.device.target.mcpu=cortex", BAD_INPUT, "LLVM knows no processor 'cortex' of this machine"),
        ("measure.device.target.mtriple=vax-dec-ultrix", BAD_INPUT, "no code can be made for the triple 'vax-dec-ult"),
        ("measure.device.tracker='127.0.0.1:91900'", BAD_INPUT, "a tracker is 'host:port' with a port from 1 to 65535"),
        ("measure.device.tracker='127.0.0.1:1'", FAILED, r"no tracker answers at 127\.0\.0\.1:1 \(.*\); start it with"),
        ("measure.device.trackr=1", BAD_INPUT, "unknown key 'measure.device.trackr'; did you mean 'tracker'"),
        ("measure.backend=onnxruntime", BAD_INPUT, "measure.device is reached by the backend 'tvm' alone"),
        ("measure.device.key=older", FAILED, "it runs another TVM than"),
    ],
)
def test_what_cannot_be_reached_is_one_line(kind, tmp_path, capfd, changed, code, told):
    device, _ = kind("pair")
    (tmp_path / "config.yaml").write_text(
        "model: {name: lenet5}\n"
        "data: {name: digits}\n"
        "budget: {metric: latency_s, ratio: 0.5}\n"
        f"measure: {{device: {{tracker: '{device.tracker}', key: pair, target: {{mcpu: {CPU.mcpu}}}}}}}\n"
    )
    command = ["search", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run"), "--set", changed]
    assert main(command) == code
    *_, line = capfd.readouterr().err.splitlines()
    assert line.startswith("trimtab: error: ")
    assert re.search(told, line), line
    assert not (tmp_path / "run").exists()
