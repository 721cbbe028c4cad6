"""How Bit Fusion's costs depend on shapes and bits, and which descriptions are refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from automl.testing.accelerators import AcceleratorConformance
from backends.accelerators.accelerator import Accelerator
from backends.accelerators.bit_fusion import BitFusion
from backends.accelerators.catalogue import load
from backends.accelerators.workloads import Workload, Workloads
from search_spaces.errors import InputError

CONV = Workload(
    batch=2,
    in_channels=64,
    out_channels=64,
    kernel_height=3,
    kernel_width=3,
    in_height=16,
    in_width=16,
    out_height=14,
    out_width=14,
    weight_bits=8,
    activation_bits=8,
)


class TestBitFusion(AcceleratorConformance):
    def make(self) -> Accelerator[Any]:
        return load("bit_fusion")


def cycles(*rows: Workload) -> list[float]:
    accelerator = load("bit_fusion")
    works = accelerator.fitted(Workloads.of(rows))
    return accelerator.run(works).compute_cycles.tolist()  # type: ignore[no-any-return]


def described(tmp_path: Path, old: str, new: str) -> Path:
    """The shipped description with a change."""
    source = Path(__file__).parents[2] / "configs/accelerators/bit_fusion.yaml"
    text = source.read_text()
    assert old in text
    path = tmp_path / "changed.yaml"
    path.write_text(text.replace(old, new))
    return path


def test_halving_the_bits_of_an_operand_halves_the_cycles_where_channels_fill_the_rows() -> None:
    rows = [replace(CONV, weight_bits=w, activation_bits=a) for w, a in ((8, 8), (4, 8), (8, 4), (4, 4), (3, 4))]
    whole, *less = cycles(*rows)
    assert whole == 2 * 14 * 14 * 9 * 2 * 4  # images, pixels, kernel, columns of 32, rows of 16
    assert less == [whole / 2, whole / 2, whole / 4, whole / 4]


def test_bits_do_not_help_where_the_rows_are_idle() -> None:
    """64 channels fill a quarter of 16 rows of units that take 16 pairs each."""
    rows = [replace(CONV, weight_bits=w, activation_bits=a) for w, a in ((4, 4), (2, 4), (2, 2))]
    assert len(set(cycles(*rows))) == 1


def test_one_bit_is_computed_as_two_and_stored_as_one() -> None:
    accelerator = load("bit_fusion")
    linear = Workload(batch=16, in_channels=4096, out_channels=1024)
    rows = [replace(linear, weight_bits=bits, activation_bits=bits) for bits in (1, 2)]
    one, two = (accelerator.run(Workloads.of([row])) for row in rows)
    assert one.compute_cycles == two.compute_cycles
    assert 2 * one.traffic["weights"].written_bits == two.traffic["weights"].written_bits


def test_16_bits_take_two_passes_for_each_operand() -> None:
    rows = [replace(CONV, weight_bits=w, activation_bits=a) for w, a in ((8, 8), (16, 8), (8, 9), (16, 16), (16, 2))]
    whole, weights, activations, both, narrow = cycles(*rows)
    assert (weights, activations, both) == (2 * whole, 2 * whole, 4 * whole)
    assert narrow == whole / 2  # two passes over weights, four pairs at once


def test_layers_of_few_channels_are_laid_out_with_their_kernel() -> None:
    image = replace(CONV, in_channels=3)
    wider = replace(CONV, in_channels=5)
    assert cycles(image, wider) == [2 * 14 * 14 * 2 * 2, 2 * 14 * 14 * 2 * 9]  # 27 in two rows of 16; 5 in one, 9 times


def test_groups_steps_and_heads_run_one_after_the_other() -> None:
    grouped = replace(CONV, in_channels=16, out_channels=16, groups=4)
    assert cycles(grouped, replace(grouped, groups=1)) == [4 * 2 * 196 * 9, 2 * 196 * 9]
    recurrent = Workload(in_channels=96, out_channels=128, steps=7, weight_bits=8, activation_bits=8)
    assert cycles(recurrent) == [7 * 6 * 4]
    attention = Workload(
        groups=3, in_channels=32, out_channels=50, in_height=50, out_height=50, product=1, weight_bits=8
    )
    assert cycles(replace(attention, activation_bits=8)) == [3 * 50 * 2 * 2]


def test_depthwise_uses_one_column() -> None:
    layer = replace(CONV, in_channels=1, out_channels=1, groups=64)
    usage = load("bit_fusion").run(Workloads.of([layer]))
    assert usage.compute_cycles.tolist() == [64 * 2 * 196]
    assert usage.utilisation[0] <= 9 / 512


def test_sums_that_lie_in_memory_are_read_once_more(tmp_path: Path) -> None:
    works = Workloads.of([CONV])
    raw = load("bit_fusion").run(works).traffic["dram"]
    path = described(tmp_path, "sums_in_memory: true", "sums_in_memory: false")
    rounded = load(path).run(works).traffic["dram"]
    assert raw.written_bits - rounded.written_bits == works.outputs * (32 - 8)
    assert raw.read_bits - rounded.read_bits == works.outputs * 32


def test_the_array_takes_energy_by_the_cycle_or_by_the_product(tmp_path: Path) -> None:
    works = Workloads.of([CONV])
    usage = load("bit_fusion").run(works)
    np.testing.assert_allclose(usage.energy_j["compute"], usage.compute_cycles * 235.104e-12)
    path = described(tmp_path, "cycle_energy: 235.104 pJ", "mac_energy: 2 pJ")
    np.testing.assert_allclose(load(path).run(works).energy_j["compute"], works.macs * 2e-12)


def test_a_layer_whose_tile_is_too_large_is_refused(tmp_path: Path) -> None:
    accelerator = load(described(tmp_path, "size: 64 KiB", "size: 8 B"))
    assert isinstance(accelerator, BitFusion)
    assert accelerator.refusals(Workloads.of([CONV])) == ["its smallest tile does not fit the buffers"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rows: 16", "rows: 0", "rows: should be greater than or equal to 1"),
        ("weight_bits: [1, 2, 4, 8, 16]", "weight_bits: [2, 3]", "numbers of 1, 2, 4, 8, 16 bits, got 3"),
        ("235.104 pJ", "235.104", "energy is a number and a unit"),
        ("  inputs:", "  input:", "needs the memory level 'inputs'"),
    ],
)
def test_bad_descriptions_are_refused_in_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(described(tmp_path, old, new))
    assert "\n" not in str(caught.value)
