"""Which zeros save what, on which hardware; what is refused; descriptions that contradict themselves."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from backends.accelerators.accelerator import Usage
from backends.accelerators.catalogue import load
from backends.accelerators.workloads import Workload, Workloads, Zeros
from search_spaces.errors import InputError

LAYER = Workload(in_channels=256, out_channels=256, weight_bits=8, activation_bits=8)
MAP = replace(LAYER, in_height=14, in_width=14, out_height=14, out_width=14)
WINDOW = {"zeros": Zeros.WINDOWS, "window": 4}
DESCRIPTION = """
class: sparse
title: test
source: this test
clock: 1 GHz
weight_bits: [16]
activation_bits: [16]
dataflow: dot_products
lanes: 16
multipliers: {16: 16}
memories:
  dram: {}
"""


def usage(name: str, *rows: Workload) -> Usage:
    accelerator = load(name)
    works = Workloads.of(rows)
    assert accelerator.refusals(works) == [None] * len(works)
    return accelerator.run(accelerator.fitted(works))


def gain(name: str, row: Workload, **zeros: Any) -> float:
    """How many times fewer cycles of arithmetic."""
    dense, sparse = usage(name, row, replace(row, **zeros)).compute_cycles
    return float(dense / sparse)


def test_more_lanes_are_never_slower_where_zeros_fall_at_random() -> None:
    """The busiest of more lanes has more nonzeros, by a whole cycle if that is rounded up for itself: 9 and 10 cycles
    on 16 and 32 lanes."""
    row = Workload(in_channels=21, out_channels=129, kernel_width=2, in_width=2, weight_bits=16, activation_bits=16)
    works = Workloads.of([replace(row, zeros=Zeros.ANYWHERE, weight_density=0.25)])
    description = yaml.safe_load(DESCRIPTION) | {"zeros": ["anywhere"], "weight_format": "bitmap"}
    counts = (8, 15, 16, 17, 20, 32, 64, 128, 129)
    cycles = [load(description | {"lanes": lanes}).run(works).compute_cycles[0] for lanes in counts]
    assert cycles == sorted(cycles, reverse=True)


@pytest.mark.parametrize(
    ("zeros", "profits"),
    [
        (Zeros.ANYWHERE, {"eie", "cambricon_x", "scnn"}),
        (Zeros.BLOCKS, {"eie", "cambricon_x", "scnn", "cambricon_s"}),
        (Zeros.FILTERS, {"eie", "cambricon_x", "scnn", "cambricon_s"}),
        (Zeros.WINDOWS, {"eie", "cambricon_x", "scnn", "sparse_tensor_core"}),
    ],
)
def test_who_profits_depends_on_where_zeros_are(zeros: Zeros, profits: set[str]) -> None:
    where: dict[str, Any] = {"zeros": zeros, "window": 4 if zeros == Zeros.WINDOWS else 0, "weight_density": 0.5}
    for name in ("eie", "cambricon_x", "cambricon_s", "scnn", "nullhop", "sparse_tensor_core"):
        bits = {"weight_bits": 4, "activation_bits": 16} if name == "eie" else {}
        row = replace(LAYER if name == "eie" else MAP, **bits)
        if name == "sparse_tensor_core":
            row = replace(row, batch=1024)
        faster = gain(name, row, **where)
        assert faster > 1.3 if name in profits else faster == 1, name


def test_zeros_that_are_read_are_skipped_gated_or_neither() -> None:
    sparse: dict[str, Any] = {"activation_density": 0.5}
    assert gain("cambricon_s", MAP, **sparse) == pytest.approx(2, rel=0.15)
    assert gain("nullhop", MAP, **sparse) == pytest.approx(2)
    assert gain("cambricon_x", MAP, **sparse) == 1
    accelerator = load("cambricon_x")
    description = accelerator.description.model_copy(update={"activation_zeros": "gated"})
    gating = type(accelerator)(description, accelerator.technology)
    works = Workloads.of([MAP, replace(MAP, **sparse)])
    found = gating.run(gating.fitted(works))
    assert found.compute_cycles[0] == found.compute_cycles[1]
    assert found.energy_j["compute"][1] == pytest.approx(found.energy_j["compute"][0] / 2)


def test_only_zeros_at_random_make_lanes_wait() -> None:
    """Half of the weights in 2:4 halve the time; anywhere, lanes wait for the busiest of 16."""
    assert gain("cambricon_x", MAP, weight_density=0.5, **WINDOW) == 2
    assert 1.4 < gain("cambricon_x", MAP, weight_density=0.5, zeros=Zeros.ANYWHERE) < 1.95
    assert gain("cambricon_s", MAP, weight_density=0.5, zeros=Zeros.BLOCKS) == 2


@pytest.mark.parametrize(
    ("window", "density", "expected"), [(4, 0.5, 2), (4, 0.25, 2), (2, 0.5, 2), (4, 0.75, 1), (8, 0.5, 1)]
)
def test_a_tensor_core_skips_what_is_two_of_four(window: int, density: float, expected: float) -> None:
    row = replace(MAP, batch=1024)
    assert gain("sparse_tensor_core", row, zeros=Zeros.WINDOWS, window=window, weight_density=density) == expected


def test_zero_filters_leave_a_narrower_layer() -> None:
    gone, narrow = usage(
        "cambricon_x", replace(MAP, zeros=Zeros.FILTERS, weight_density=0.25), replace(MAP, out_channels=64)
    ).cycles
    assert gone == narrow


def test_weights_without_zeros_move_fewer_bits() -> None:
    """Run lengths of 8 bits before numbers of 16: stored dense from 2 of 3 on."""
    rows = [replace(MAP, zeros=Zeros.ANYWHERE, weight_density=density) for density in (1.0, 0.9, 0.5, 0.1)]
    bits = usage("cambricon_x", *rows).traffic["dram"].bits
    assert bits[0] == bits[1]
    assert bits[0] - bits[3] > bits[0] - bits[2] > 0


def test_eie_counts_a_column_of_nothing() -> None:
    """Each value that it reads takes a cycle at least, and those that are zero none."""
    row = replace(LAYER, weight_bits=4, activation_bits=16, zeros=Zeros.ANYWHERE, weight_density=1e-6)
    assert usage("eie", row, replace(row, activation_density=0.25)).cycles.tolist() == pytest.approx(
        [256, 64], rel=1e-2
    )


def test_a_stride_costs_no_products_that_are_thrown_away() -> None:
    """Of an even kernel and map: all phases alike."""
    size = {"in_height": 64, "in_width": 64, "out_height": 32, "out_width": 32, "kernel_height": 2, "kernel_width": 2}
    row = replace(LAYER, **size, stride_height=2, stride_width=2)
    works = Workloads.of([row])
    assert usage("scnn", row).compute_cycles[0] == works.macs[0] / 1024


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("eie", replace(MAP, weight_bits=4), "it is a convolution; the hardware runs linear alone"),
        ("eie", replace(LAYER, weight_bits=4, product=1), "it is a product of two computed matrices"),
        ("eie", replace(LAYER, weight_bits=4, in_channels=8192, out_channels=8192), "do not fit the chip"),
        ("eie", LAYER, "weights of 8 bits; the hardware has at most 4"),
        ("nullhop", replace(LAYER, product=1), "it is a product of two computed matrices"),
        ("nullhop", replace(MAP, kernel_height=11), "a kernel of 11; the hardware has at most 7"),
    ],
)
def test_what_cannot_run_is_refused(name: str, row: Workload, reason: str) -> None:
    (found,) = load(name).refusals(Workloads.of([row]))
    assert found is not None
    assert reason in found


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("eie", replace(LAYER, weight_bits=4, steps=20, batch=4)),
        ("ese", replace(LAYER, weight_bits=8, out_channels=1024, steps=20)),
        ("cambricon_x", replace(LAYER, steps=20)),
        ("cambricon_x", replace(LAYER, in_height=64, out_height=64, groups=8, product=1)),
        ("scnn", replace(MAP, groups=256, in_channels=1, out_channels=1, kernel_height=3, kernel_width=3)),
        ("scnn", replace(MAP, kernel_height=3, kernel_width=3, dilation_height=2, dilation_width=2)),
        ("nullhop", replace(MAP, groups=4, in_channels=64, out_channels=64, kernel_height=3, kernel_width=3)),
        ("sparse_tensor_core", replace(LAYER, in_height=64, out_height=64, groups=8, product=1)),
    ],
)
def test_what_can_run_does(name: str, row: Workload) -> None:
    found = usage(name, row)
    assert found.cycles[0] > 0
    assert 0 < found.utilisation[0] <= 1


def test_values_on_the_chip_do_not_leave_it() -> None:
    """SCNN's weights pass once; a map too large for its buffers passes, too."""
    small, large = (
        replace(MAP, weight_bits=16),
        replace(MAP, in_height=224, in_width=224, out_height=224, out_width=224),
    )
    moved = usage("scnn", small, large).traffic["dram"]
    assert moved.bits[0] == 256 * 256 * 16
    assert moved.written_bits[0] == 0 < moved.written_bits[1]
    assert moved.bits[1] >= (256 * 256 + 2 * 256 * 224 * 224) * 16


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("rows: [32]", "lanes are divided into 1 to 16 parts, got rows \\[32\\]"),
        ("zeros: [anywhere]\nwindow: [2, 4]", "a window is of hardware that skips zeros in windows alone"),
        ("zeros: [windows]\nwindow: [4, 4]", "of a window \\[N, M\\] N is from 1 to M - 1, got \\[4, 4\\]"),
        ("zeros: [everywhere]", "zeros"),
        ("queue: 0", "queue"),
        ("on_chip: [weights]", "weights on the chip need a memory level 'weights'; add it to memories"),
    ],
)
def test_descriptions_that_contradict_themselves(tmp_path: Path, line: str, rule: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(DESCRIPTION + line + "\n")
    with pytest.raises(InputError, match=rule) as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("multipliers", "rule"),
    [
        ("{8: 16, 16: 32}", "multipliers are at least 1 and never more for more bits"),
        ("{8: 16}", "there are operands of 16 bits, but multipliers only for up to 8"),
    ],
)
def test_multipliers_that_make_no_sense(tmp_path: Path, multipliers: str, rule: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(DESCRIPTION.replace("{16: 16}", multipliers))
    with pytest.raises(InputError, match=rule):
        load(path)


def test_a_buffer_is_shared_or_not(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(DESCRIPTION + "  shared: {size: 1 MiB}\n  inputs: {size: 1 MiB}\n")
    with pytest.raises(InputError, match="a buffer is shared or there is one for each operand"):
        load(path)
