"""A device of another architecture, served by TVM's runtime in C++ alone: cross-compiled here, measured there."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from aarch64 import TRIPLE, build_emulator
from rpc_devices import devices

from automl.export.agreement import compare
from automl.models import build_model
from backends.measuring import TOLERANCE
from backends.remote.device import RemoteDevice
from backends.remote.fleet import Fleet
from backends.remote.networks import Network, measure_networks
from backends.table_backend import open_prices
from backends.torch_reference import reference_output
from backends.tvm import compile_module
from backends.tvm.kernels.base import Kernel, Span, Window
from backends.tvm.kernels.convolution import Conv2d
from backends.tvm.kernels.epilogue import Epilogue
from backends.tvm.kernels.integer.dense import IntegerDense
from backends.tvm.target import cpu_for

if cpu_for().architecture == "aarch64":
    pytest.skip("this machine is what the others are cross-compiled for", allow_module_level=True)


@pytest.fixture(scope="module")
def phone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteDevice]:
    emulator = build_emulator(tmp_path_factory.mktemp("aarch64"), "aarch64_session.cc")
    with devices(f"phone:{json.dumps(emulator.command('cortex-a76'))}") as (tracker, _):
        yield RemoteDevice(tracker, "phone", "cortex-a76", TRIPLE, timeout_s=120.0)


def test_operators_enter_a_table_of_that_device(
    phone: RemoteDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    lanes = phone.cpu(1).lanes
    kernels: list[Kernel] = [
        Conv2d((1, 2, 6, 6, lanes), Span(2, lanes, 0), 2, (4, 4), lanes, Window((3, 3)), Epilogue()),
        IntegerDense(1, 32, 20, lanes),
    ]
    with open_prices("tvm", device=phone) as prices:
        prices.latencies(kernels)
        entries = prices.table.entries()
        assert prices.table.device.target == f"cortex-a76 {TRIPLE}"
        assert prices.notices == []
    assert list(entries) == [kernel.recipe for kernel in kernels]
    assert all(entry.error <= TOLERANCE and entry.pace_s > 0 for entry in entries.values())


def test_networks_are_checked_and_timed_there(phone: RemoteDevice, tmp_path: Path) -> None:
    module, x = build_model("resnet20", {}, classes=10, input_shape=(1, 16, 16)).eval(), torch.randn(1, 1, 16, 16)
    compile_module(module, x, mcpu=phone.mcpu, triple=phone.triple).export(tmp_path / "model.so")
    expected = reference_output(module, x)
    network = Network(tmp_path / "model.so", lambda output: compare(output, expected, 0.0))
    with Fleet(phone) as fleet:
        fleet.require()
        (found,) = measure_networks(fleet, [network], x.numpy(), rounds=2)
    assert 0 < found.p10_s <= found.latency_s <= found.p90_s
    assert found.max_error is not None
    assert found.max_error <= 1e-5
    assert found.details["target"] == f"cortex-a76 {TRIPLE}"
