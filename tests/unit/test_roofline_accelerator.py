"""The roofline, computed by hand."""

from typing import Any

import pytest

from automl.testing.accelerators import AcceleratorConformance
from backends.accelerators.accelerator import Accelerator
from backends.accelerators.catalogue import load
from backends.accelerators.workloads import Workload, Workloads

DOCUMENT = {
    "class": "roofline",
    "title": "two caches",
    "source": "this test",
    "clock": "1 GHz",
    "static_power": "2 W",
    "mac_energy": "1 pJ",
    "weight_bits": [4, 8],
    "activation_bits": [4, 8],
    "peak": {4: "16 GMAC/s", 8: "4 GMAC/s"},
    "memories": {
        "dram": {"bandwidth": "8 bit/cycle", "energy": "10 pJ/bit"},
        "l1": {"size": "64 KiB", "bandwidth": "64 bit/cycle", "energy": "1 pJ/bit"},
    },
}
LINEAR = Workload(in_channels=64, out_channels=32, weight_bits=8, activation_bits=8)
CONVOLUTION = Workload(
    in_channels=32,
    out_channels=64,
    kernel_height=3,
    kernel_width=3,
    in_height=18,
    in_width=18,
    out_height=16,
    out_width=16,
    weight_bits=8,
    activation_bits=8,
)


def made(**changes: object) -> Accelerator[Any]:
    return load({**DOCUMENT, **changes})


def test_a_linear_layer_is_limited_by_memory() -> None:
    """2048 MACs at 4 a cycle; 2048 weights, 64 inputs and 32 outputs of a byte each at a byte a cycle."""
    usage = made().run(Workloads.of([LINEAR]))
    assert usage.compute_cycles == 512
    assert usage.cycles == usage.memory_cycles["dram"] == 2048 + 64 + 32
    assert usage.memory_cycles["l1"] == (2048 + 64 + 32) / 8
    assert usage.limits() == ["dram"]
    assert usage.utilisation == pytest.approx(512 / 2144)
    assert usage.energy_j["compute"] == pytest.approx(2048e-12)
    assert usage.energy_j["dram"] == pytest.approx(2144 * 8 * 10e-12)
    assert usage.energy_j["l1"] == pytest.approx(2144 * 8 * 1e-12)
    assert usage.energy_j["static"] == pytest.approx(2 * 2144e-9)


def test_a_convolution_is_limited_by_arithmetic() -> None:
    """Its 18,432 weights, 10,368 inputs and 16,384 outputs move once: weights and three lines fit the cache."""
    usage = made().run(Workloads.of([CONVOLUTION]))
    assert usage.traffic["dram"].bits == 8 * (18432 + 10368 + 16384)
    assert usage.cycles == 16 * 16 * 64 * 32 * 9 / 4
    assert usage.limits() == ["compute"]
    assert usage.utilisation == 1


def test_fewer_bits_run_at_their_own_peak_and_the_wider_operand_counts() -> None:
    accelerator = made()
    works = Workloads.of([CONVOLUTION, CONVOLUTION]).replace(weight_bits=[4, 4], activation_bits=[4, 8])
    usage = accelerator.run(works)
    eight = accelerator.run(Workloads.of([CONVOLUTION])).compute_cycles
    assert usage.compute_cycles.tolist() == [eight[0] / 4, eight[0]]


def test_every_step_is_launched() -> None:
    launched = made(launch="1 us")
    works = Workloads.of([LINEAR, Workload(in_channels=8, out_channels=8, steps=5, weight_bits=8, activation_bits=8)])
    more = launched.run(works).cycles - made().run(works).cycles
    assert more.tolist() == pytest.approx([1000, 5000])


def test_a_smaller_cache_costs_traffic() -> None:
    small = {**DOCUMENT["memories"], "l1": {"size": "4 KiB"}}  # type: ignore[dict-item]
    few = made().run(Workloads.of([CONVOLUTION])).traffic["dram"].bits
    assert made(memories=small).run(Workloads.of([CONVOLUTION])).traffic["dram"].bits > few


class TestTwoCaches(AcceleratorConformance):
    def make(self) -> Accelerator[Any]:
        return made(memories={**DOCUMENT["memories"], "l2": {"size": "256 KiB"}, "l1": {"size": "3 KiB"}})  # type: ignore[dict-item]
