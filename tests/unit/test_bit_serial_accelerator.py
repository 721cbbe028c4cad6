"""How bit-serial costs depend on shapes and bits, and which descriptions are refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from automl.testing.accelerators import AcceleratorConformance
from backends.accelerators.accelerator import Accelerator, Usage
from backends.accelerators.catalogue import load
from backends.accelerators.workloads import Workload, Workloads
from search_spaces.errors import InputError

CONV = Workload(
    batch=2,
    in_channels=64,
    out_channels=40,
    kernel_height=3,
    kernel_width=3,
    in_height=16,
    in_width=16,
    out_height=14,
    out_width=14,
    weight_bits=8,
    activation_bits=8,
)


class TestEdge(AcceleratorConformance):
    examples = 10

    def make(self) -> Accelerator[Any]:
        return load("bismo_edge")


class TestCloud(AcceleratorConformance):
    examples = 10

    def make(self) -> Accelerator[Any]:
        return load("haq_bismo")


class TestStripes(AcceleratorConformance):
    examples = 10

    def make(self) -> Accelerator[Any]:
        return load("stripes")


class TestUnpu(AcceleratorConformance):
    examples = 10

    def make(self) -> Accelerator[Any]:
        return load("unpu")


def run(name: str | Path, *rows: Workload) -> Usage:
    accelerator = load(name)
    works = Workloads.of(rows)
    assert accelerator.refusals(works) == [None] * len(rows)
    return accelerator.run(accelerator.fitted(works))


def cycles(name: str | Path, *rows: Workload) -> list[float]:
    return run(name, *rows).compute_cycles.tolist()  # type: ignore[no-any-return]


def described(tmp_path: Path, name: str, old: str, new: str) -> Path:
    """A shipped description with a change."""
    text = (Path(__file__).parents[2] / f"configs/accelerators/{name}.yaml").read_text()
    assert old in text
    path = tmp_path / "changed.yaml"
    path.write_text(text.replace(old, new))
    return path


def test_both_operands_take_a_cycle_a_pair_of_bits() -> None:
    rows = [replace(CONV, weight_bits=w, activation_bits=a) for w, a in ((1, 1), (1, 5), (3, 1), (7, 6))]
    one = 49 * 5 * 3  # of 392 pixels, 40 outputs and 576 products by 8, 8 and 256
    assert cycles("bismo_edge", *rows) == [one, 5 * one, 3 * one, 42 * one]


@pytest.mark.parametrize(("name", "serial"), [("stripes", "activation_bits"), ("unpu", "weight_bits")])
def test_one_sided_arrays_gain_from_one_operand(name: str, serial: str) -> None:
    other = "weight_bits" if serial == "activation_bits" else "activation_bits"
    rows = [replace(CONV, weight_bits=16, activation_bits=16), replace(CONV, **{serial: 4, other: 16})]
    rows += [replace(CONV, **{serial: 4, other: 2})]
    whole, quarter, same = cycles(name, *rows)
    assert quarter == same == whole / 4


def test_weights_of_one_bit_are_summed_deeper() -> None:
    layer = Workload(batch=24, in_channels=48, out_channels=48, activation_bits=16)
    assert cycles("unpu", replace(layer, weight_bits=2), replace(layer, weight_bits=1)) == [4 * 2, 3 * 1]


def test_images_apart_have_last_rows_of_their_own(tmp_path: Path) -> None:
    """14 x 14 pixels are 13 rows of 16, two images together 25; images of a linear layer share them."""
    path = described(tmp_path, "haq_bismo", "images_apart: true", "images_apart: false")
    assert cycles("haq_bismo", CONV)[0] / cycles(path, CONV)[0] == 26 / 25
    linear = Workload(batch=16, in_channels=256, out_channels=16, weight_bits=1, activation_bits=1)
    assert cycles("haq_bismo", linear) == cycles(path, linear) == [1]
    apart, together = (run(name, CONV).traffic["weights"].written_bits for name in ("haq_bismo", path))
    assert apart == 2 * together == 2 * 40 * 3 * 256 * 8


def test_channels_of_a_depthwise_layer_share_the_depth(tmp_path: Path) -> None:
    layer = replace(CONV, in_channels=1, out_channels=1, groups=33, batch=1)
    path = described(tmp_path, "haq_bismo", "depthwise_lanes: 16", "depthwise_lanes: 1")
    assert cycles("haq_bismo", layer) == [3 * 13 * 64]
    assert cycles(path, layer) == [33 * 13 * 64]
    wide = replace(layer, kernel_height=5, kernel_width=5)  # 25 products in lanes of 16
    assert cycles("haq_bismo", wide) == [2 * 3 * 13 * 64]


def test_groups_steps_and_heads_run_one_after_the_other() -> None:
    grouped = replace(CONV, in_channels=16, out_channels=10, groups=4)
    assert cycles("bismo_edge", grouped) == [4 * 49 * 2 * 64]
    recurrent = Workload(in_channels=96, out_channels=128, steps=7, weight_bits=8, activation_bits=8)
    assert cycles("bismo_edge", recurrent) == [7 * 16 * 64]
    product = Workload(
        batch=2, groups=3, in_channels=32, out_channels=50, in_height=50, out_height=50, product=1, weight_bits=8
    )
    assert cycles("bismo_edge", replace(product, activation_bits=8)) == [2 * 3 * 7 * 7 * 64]


def test_what_does_not_fit_passes_again() -> None:
    """Weights of 1200 x 1200 bytes fill 315 KiB 4.5 times, activations of 10000 images 37.2 times."""
    layer = Workload(batch=10000, in_channels=1200, out_channels=1200, weight_bits=8, activation_bits=8)
    weights, activations = 1200 * 1200 * 8, 10000 * 1200 * 8
    traffic = run("bismo_edge", layer).traffic["dram"]
    assert traffic.read_bits == min(weights + 5 * activations, activations + 38 * weights)
    assert traffic.written_bits == activations


def test_weights_that_fit_stay_over_the_steps_of_a_recurrent_layer() -> None:
    small = Workload(in_channels=100, out_channels=100, steps=9, weight_bits=8, activation_bits=8)
    large = replace(small, in_channels=1000, out_channels=1000)
    traffic = run("bismo_edge", small, large).traffic["dram"].read_bits.tolist()
    assert traffic == [(100 * 100 + 9 * 100) * 8, (9 * 1000 * 1000 + 9 * 1000) * 8]


def test_activations_that_stay_on_the_chip_do_not_reach_memory() -> None:
    traffic = run("stripes", replace(CONV, weight_bits=16)).traffic["dram"]
    assert traffic.read_bits == 576 * 40 * 16
    assert traffic.written_bits == 0


def test_utilisation_is_whole_where_a_layer_fills_the_array() -> None:
    full = Workload(batch=64, in_channels=256, out_channels=64, weight_bits=8, activation_bits=8)
    half = replace(full, in_channels=128)
    usage = run("bismo_edge", full, half)
    np.testing.assert_allclose(usage.utilisation, [1.0, 0.5])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("serial: both", "serial: neither", "serial: should be 'both', 'weights' or 'activations', got 'neither'"),
        ("rows: 8", "rows: -8", "rows: should be greater than or equal to 1"),
        ("word: 256", "depthwise_lanes: 9", "depthwise_lanes is at most 8, got 9"),
        ("weights: {size: 315 KiB}", "weights: {size: 128 B}", "'weights' is smaller than one tile: .* 2048 bits"),
        ("  weights:", "  weight:", "needs the memory level 'weights'"),
    ],
)
def test_bad_descriptions_are_refused_in_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(described(tmp_path, "bismo_edge", old, new))
    assert "\n" not in str(caught.value)
