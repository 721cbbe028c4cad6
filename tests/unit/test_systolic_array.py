"""What systolic arrays do with layers of every kind, and which descriptions are refused."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from automl.testing.accelerators import AcceleratorConformance
from backends.accelerators.accelerator import Accelerator
from backends.accelerators.catalogue import load
from backends.accelerators.energy import Technology
from backends.accelerators.systolic import SystolicArray, SystolicDescription
from backends.accelerators.workloads import Workload, Workloads
from search_spaces.errors import InputError
from search_spaces.sections import checked

FLOWS = ("output_stationary", "weight_stationary", "input_stationary")
TECHNOLOGY: Technology = load("tpu_v1").technology
CONV = Workload(
    in_channels=24,
    out_channels=40,
    kernel_height=3,
    kernel_width=3,
    in_height=14,
    in_width=14,
    out_height=14,
    out_width=14,
    weight_bits=8,
    activation_bits=8,
)


def described(**changes: Any) -> SystolicDescription:
    """Of a small array whose memories are slow enough to matter."""
    small = {"size": "16 KiB", "double_buffered": True}
    document = {
        "class": "systolic",
        "title": "an array",
        "source": "none",
        "clock": "500 MHz",
        "static_power": "5 mW",
        "weight_bits": [2, 4, 8, 16],
        "activation_bits": [4, 8, 16],
        "array": {"rows": 8, "columns": 12},
        "dataflow": "weight_stationary",
        "memories": {
            "dram": {"bandwidth": "16 bit/cycle"},
            "inputs": {**small, "read_bandwidth": "8 B/cycle"},
            "weights": small,
            "outputs": {**small, "bandwidth": "32 B/cycle"},
        },
    }
    return checked(SystolicDescription, {**document, **changes}, "array.yaml")


def array(**changes: Any) -> SystolicArray:
    return SystolicArray(described(**changes), TECHNOLOGY)


def memories(**changes: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Large and as fast as asked, but for some."""
    large = {"size": "1 GiB"}
    return {"dram": {}, "inputs": large, "weights": large, "outputs": large, **changes}


class TestSlowMemories(AcceleratorConformance):
    examples = 10  # of each dataflow

    @pytest.fixture(autouse=True, params=FLOWS)
    def _flow(self, request: pytest.FixtureRequest) -> None:
        self.flow = request.param

    def make(self) -> Accelerator[Any]:
        return array(dataflow=self.flow)


class TestEverySwitch(AcceleratorConformance):
    def make(self) -> Accelerator[Any]:
        tile = {"rows": 16, "columns": 8}
        return array(unit_bits=4, overlapped=True, weight_tile=tile, keeps_activations=True)


def cycles(model: SystolicArray, *rows: Workload) -> list[float]:
    works = Workloads.of(rows)
    assert model.refusals(works) == [None] * len(rows)
    found: list[float] = model.run(model.fitted(works)).compute_cycles.tolist()
    return found


@pytest.mark.parametrize("flow", FLOWS)
def test_groups_heads_and_steps_follow_one_another(flow: str) -> None:
    model = array(dataflow=flow, memories=memories())
    heads = replace(CONV, groups=4, kernel_height=1, kernel_width=1, product=1)
    one, grouped, stepped = cycles(model, CONV, replace(CONV, groups=6), replace(CONV, steps=6))
    assert grouped == stepped == 6 * one
    single, image, batch = cycles(model, replace(heads, groups=1), heads, replace(heads, batch=5))
    assert image == 4 * single
    assert batch == 5 * image  # each image has a second matrix of its own


@pytest.mark.parametrize("flow", FLOWS)
def test_a_batch_is_a_larger_map(flow: str) -> None:
    model = array(dataflow=flow, memories=memories())
    batch, tall = cycles(model, replace(CONV, batch=3), replace(CONV, in_height=42, out_height=42))
    assert batch == tall


def test_stride_and_dilation_only_choose_what_is_read() -> None:
    model = array(memories=memories())
    dilated = replace(CONV, dilation_height=2, dilation_width=2)
    strided = replace(CONV, stride_height=2, stride_width=2, in_height=28, in_width=28)
    assert len(set(cycles(model, CONV, dilated, strided))) == 1


@pytest.mark.parametrize("flow", FLOWS)
def test_a_depthwise_layer_leaves_most_of_the_array_idle(flow: str) -> None:
    model = array(dataflow=flow, memories=memories())
    depthwise = replace(CONV, in_channels=1, out_channels=1, groups=24)
    dense, idle = model.run(Workloads.of([CONV, depthwise])).utilisation
    assert idle < dense / 4


def test_a_recurrent_layer_reads_its_weights_at_every_step_unless_they_fit() -> None:
    large, small = replace(CONV, steps=9), replace(CONV, in_channels=4, out_channels=8, steps=9)
    level = {"size": "8 KiB"}
    usage = array(memories=memories(weights=level)).run(Workloads.of([large, small]))
    weights = [layer.in_channels * 9 * layer.out_channels * 8 for layer in (large, small)]
    activations = [9 * (layer.in_channels + layer.out_channels) * 14 * 14 * 8 for layer in (large, small)]
    assert (usage.traffic["dram"].bits - activations).tolist() == [9 * weights[0], weights[1]]


def test_the_slowest_memory_sets_the_pace() -> None:
    fast = array(memories=memories()).run(Workloads.of([CONV]))
    slow = array(memories=memories(dram={"bandwidth": "1 bit/cycle"})).run(Workloads.of([CONV]))
    moved = CONV.in_channels * 14 * 14 * 8 + CONV.out_channels * (14 * 14 + 24 * 9) * 8
    assert (fast.limits(), slow.limits()) == (["compute"], ["dram"])
    assert slow.cycles.tolist() == [moved]
    narrow = {"size": "1 GiB", "read_bandwidth": "1 bit/cycle"}
    beside = array(memories=memories(weights=narrow)).run(Workloads.of([CONV]))
    assert beside.limits() == ["weights"]
    assert beside.cycles.tolist() == [40 * 24 * 9 * 8]  # each weight is shifted in once


def test_partial_sums_are_read_and_written_at_their_own_width() -> None:
    works = Workloads.of([CONV])
    outputs = 40 * 14 * 14
    still = array(dataflow="output_stationary", memories=memories()).run(works).traffic["outputs"]
    passing = array(memories=memories()).run(works).traffic["outputs"]
    assert still.read_bits.tolist() == still.written_bits.tolist() == [outputs * 8]
    folds = 24 * 9 // 8
    assert passing.read_bits.tolist() == passing.written_bits.tolist() == [outputs * (8 + 32 * (folds - 1))]


def test_wide_operands_take_passes() -> None:
    model = array(unit_bits=4, memories=memories(), dataflow="output_stationary")
    works = Workloads.of([replace(CONV, weight_bits=w, activation_bits=a) for w, a in ((4, 4), (8, 4), (8, 16))])
    usage = model.run(works)
    assert (usage.compute_cycles / usage.compute_cycles[0]).tolist() == [1, 2, 8]
    np.testing.assert_allclose(usage.utilisation, usage.utilisation[0])
    words = usage.traffic["inputs"].read_bits / usage.traffic["inputs"].read_bits[0]
    assert words.tolist() == [1, 2, 8]  # all slices of the inputs, once for each slice of the weights


def test_overlap_hides_the_filling_of_the_array() -> None:
    plain, hidden = array(memories=memories()), array(memories=memories(), overlapped=True)
    folds = 27 * 4  # 216 products over 8 rows, 40 filters over 12 columns
    assert cycles(plain, CONV) == [folds * (196 + 8 + 12 - 2 + 8) - 1]
    assert cycles(hidden, CONV) == [folds * 196 + 8 + 12 - 2 + 8 - 1]
    short = replace(CONV, out_height=1, out_width=1)  # one number passes by, but the next weights take 8 cycles
    assert cycles(hidden, short) == [folds * 8 + 8 + 12 - 2 + 8 - 1]


def test_weights_in_whole_tiles_move_their_zeros_too() -> None:
    tile, steps = {"rows": 100, "columns": 100}, replace(CONV, steps=5)
    stored, activations = 300 * 100 * 8, (24 + 40) * 14 * 14 * 8
    tiled = array(weight_tile=tile, memories=memories()).run(Workloads.of([CONV, steps]))
    assert tiled.traffic["weights"].written_bits.tolist() == [stored, stored]
    assert tiled.traffic["dram"].bits.tolist() == [stored + activations, stored + 5 * activations]
    level = {"size": f"{stored // 8 - 1} B"}  # enough for the weights, not for the tiles
    again = array(weight_tile=tile, memories=memories(weights=level)).run(Workloads.of([steps]))
    assert again.traffic["dram"].bits.tolist() == [5 * (stored + activations)]


def test_activations_stay_on_the_chip_where_they_fit() -> None:
    both = (24 + 40) * 14 * 14
    fitting, small = ({"size": f"{size} B"} for size in (both, both - 1))
    kept = array(keeps_activations=True, memories=memories(inputs=fitting)).run(Workloads.of([CONV]))
    moved = array(keeps_activations=True, memories=memories(inputs=small)).run(Workloads.of([CONV]))
    weights = 24 * 9 * 40
    assert kept.traffic["dram"].bits[0] == pytest.approx(weights * 8)
    assert moved.traffic["dram"].bits[0] == (weights + both) * 8


def test_a_layer_whose_tile_is_too_large_is_refused() -> None:
    model = array(memories=memories(inputs={"size": "96 B"}))
    reasons = model.refusals(Workloads.of([CONV, replace(CONV, kernel_height=11, kernel_width=11), CONV]))
    assert reasons == [None, "its smallest tile does not fit the memories of inputs, weights and outputs", None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"array": {"rows": 0, "columns": 8}}, "array.rows: should be greater than or equal to 1, got 0"),
        ({"array": {"rows": 8}}, "the key 'array.columns' is missing"),
        ({"dataflow": "row_stationary"}, "dataflow: "),
        ({"dataflow": "input_stationary", "weight_tile": {"rows": 4, "columns": 4}}, "weights lie in tiles where"),
        ({"unit_bits": 0}, "unit_bits: should be greater than or equal to 1, got 0"),
        ({"memories": {"dram": {}, "inputs": {"size": "1 KiB"}}}, "needs the memory level 'weights'; add it"),
        ({"memories": memories(weights={"size": "95 B"}), "weight_bits": [8]}, "'weights' has .* KiB for a tile"),
        ({"memories": memories(cache={"size": "1 KiB"})}, "has no memory level 'cache'"),
    ],
)
def test_bad_descriptions_are_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        array(**changes)
    assert "\n" not in str(caught.value)
