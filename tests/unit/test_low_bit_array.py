"""Binary and ternary arrays: windows, rounds, tiles, what leaves the chip, and what is refused."""

from typing import Any

import pytest
import torch
from torch import nn

from automl.testing.accelerators import AcceleratorConformance
from backends.accelerators.accelerator import Accelerator
from backends.accelerators.backend import AcceleratorBackend
from backends.accelerators.catalogue import load
from backends.accelerators.workloads import Workload, Workloads
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph
from search_spaces.policy import CompressionPolicy, LayerPolicy

BASE: dict[str, Any] = {
    "class": "low_bit",
    "title": "an array",
    "source": "a test",
    "clock": "100 MHz",
    "weight_bits": [1],
    "activation_bits": [4],
    "windows": {3: 8},
    "memories": {"dram": {}, "weights": {"size": "1 KiB"}},
}


def array(**changes: Any) -> Accelerator[Any]:
    return load({**BASE, **changes})


class TestBinary(AcceleratorConformance):
    """Both operands of 1 bit, 16 channels and one window of 7 x 7 at a time: the kind of XNORBIN."""

    def make(self) -> Accelerator[Any]:
        memories = {"dram": {"bandwidth": "2 B/cycle"}, "weights": {"size": "4 KiB", "bandwidth": "64 bit/cycle"}}
        image = {"image": {"size": "2 KiB", "read_bandwidth": "100 bit/cycle"}}
        return array(activation_bits=[1], channels=16, windows={7: 1}, memories=memories | image)


class TestTernary(AcceleratorConformance):
    """Weights of 2 bits, several windows, sums that leave the chip, static power."""

    def make(self) -> Accelerator[Any]:
        sums = {"sums_on_chip": False, "accumulator_bits": 20}
        return array(weight_bits=[2], activation_bits=[2, 8], windows={1: 64, 3: 7, 5: 2}, static_power="1 mW", **sums)


def conv(inputs: int, outputs: int, size: int, kernel: int = 3, **columns: int) -> Workloads:
    sides = {
        f"{what}_{axis}": value for what, value in (("kernel", kernel), ("in", size), ("out", size)) for axis in AXES
    }
    row = Workload(in_channels=inputs, out_channels=outputs, weight_bits=1, activation_bits=4, **sides | columns)
    return Workloads.of([row])


AXES = ("height", "width")


@pytest.mark.parametrize(
    ("changes", "works", "cycles"),
    [
        ({}, conv(5, 8, 10), 100 * 5),
        ({}, conv(5, 9, 10), 100 * 5 * 2),
        ({"channels": 4}, conv(5, 8, 10), 100 * 2),
        ({"channels": 4, "interleaved": 8}, conv(5, 8, 10), 100 * 8),
        ({"channels": 4, "interleaved": 8}, conv(33, 8, 10), 100 * 16),
        ({}, conv(5, 8, 10, 1), 100 * 5),
        ({}, conv(5, 8, 10, 7), 100 * 5 * 9),
        ({"windows": {3: 8, 7: 2}}, conv(5, 8, 10, 7), 100 * 5 * 4),
        ({"windows": {3: 8, 7: 2}}, conv(5, 8, 10, 5), 100 * 5 * 4),
        ({"windows": {1: 8}}, conv(5, 8, 10, 3), 100 * 5 * 9),
        ({}, conv(5, 8, 10, 3, dilation_height=2, dilation_width=2), 100 * 5 * 4),
        ({"windows": {5: 8}}, conv(5, 8, 10, 3, dilation_height=2, dilation_width=2), 100 * 5),
        ({}, conv(1, 1, 10, groups=6), 100 * 6),
        ({}, conv(5, 8, 1, 1, steps=7), 5 * 7),
        ({}, conv(5, 8, 10, batch=3), 100 * 5 * 3),
    ],
)
def test_cycles_by_hand(changes: dict[str, Any], works: Workloads, cycles: int) -> None:
    assert array(**changes).run(works).compute_cycles.tolist() == [cycles]


def test_rows_between_tiles_are_run_twice() -> None:
    """12 rows of 3 pixels of 4 bits: of an image of 32 rows three tiles, each with two rows of the one before."""
    image = {"dram": {}, "weights": {"size": "1 KiB"}, "image": {"size": f"{12 * 3 * 4} bit"}}
    usage = array(memories=image).run(conv(1, 8, 32))
    assert usage.compute_cycles.tolist() == [(32 + 2 * 2) * 32]
    assert usage.traffic["image"].written_bits == pytest.approx((32 + 2 * 2) * 32 * 4)


def test_an_image_memory_below_the_window_is_refused() -> None:
    image = {"dram": {}, "weights": {"size": "1 KiB"}, "image": {"size": f"{2 * 3 * 4} bit"}}
    with pytest.raises(InputError, match="it holds 2 rows of pixels under a window of 3 x 3; enlarge it") as caught:
        array(memories=image)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("windows", "what"),
    [({}, "at least 1"), ({0: 8}, "from 1 to 65536"), ({3: 0}, "from 1 to 65536"), ({3: 8, 5: 9}, "no more output")],
)
def test_windows_are_checked(windows: dict[int, int], what: str) -> None:
    with pytest.raises(InputError, match=what):
        array(windows=windows)


def test_sums_leave_the_chip_after_each_round() -> None:
    works = conv(20, 8, 10)
    inside = array(interleaved=8).run(works).traffic["dram"]
    outside = array(interleaved=8, sums_on_chip=False, accumulator_bits=16).run(works).traffic["dram"]
    assert outside.written_bits - inside.written_bits == pytest.approx(2 * 800 * 16)
    assert outside.read_bits - inside.read_bits == pytest.approx(2 * 800 * 16)


def test_idle_lanes_draw_power_and_smaller_windows_less() -> None:
    powered = array(windows={3: 8, 7: 4}, power="1 mW", interleaved=4)
    full, idle, small = (powered.run(each) for each in (conv(4, 4, 8, 7), conv(1, 1, 8, 7), conv(4, 4, 8, 3)))
    assert full.energy_j["compute"] == pytest.approx(1e-3 * 64 * 4 / 100e6)
    assert idle.energy_j["compute"] == pytest.approx(full.energy_j["compute"])
    assert small.energy_j["compute"] / full.energy_j["compute"] == pytest.approx(9 * 8 / (49 * 4))


def test_weights_that_fit_stay_over_the_steps() -> None:
    fitting, large = conv(64, 128, 1, 1, steps=5), conv(64, 129, 1, 1, steps=5)
    read = [array(activation_bits=[4]).run(works).traffic["weights"].written_bits for works in (fitting, large)]
    assert read == [64 * 128, 64 * 129 * 5]


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (LayerPolicy(weight_bits=1, activation_bits=8), None),
        (LayerPolicy(weight_bits=2, activation_bits=8), "weights of the scheme 'symmetric'; the hardware takes binary"),
        (LayerPolicy(weight_bits=1, weight_scheme="asymmetric", activation_bits=8), "takes binary"),
        (LayerPolicy(weight_bits=1, activation_bits=13), "activations of 13 bits; the hardware has at most 12"),
        (LayerPolicy(weight_bits=1), "activations of 32 bits"),
        (LayerPolicy(activation_bits=8), "weights of 32 bits; the hardware has at most 1"),
    ],
)
def test_what_yodann_takes(layer: LayerPolicy, reason: str | None) -> None:
    graph = network().apply(CompressionPolicy({"0": layer}))
    reasons = AcceleratorBackend("yodann", load("yodann")).supports(graph)
    assert (len(reasons) == 0) if reason is None else (reason in reasons[0])


def network() -> ModelGraph:
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    return PrunableNetwork(model, torch.zeros(1, 3, 8, 8), prove=False).graph
