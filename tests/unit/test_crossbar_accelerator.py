"""Crossbars: cells, reads and conversions counted by hand, and operation units under the kit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from automl.testing.accelerators import AcceleratorConformance
from backends.accelerators.accelerator import Accelerator, Usage
from backends.accelerators.catalogue import load
from backends.accelerators.crossbar import Crossbar, CrossbarDescription
from backends.accelerators.workloads import Workload, Workloads, Zeros
from search_spaces.errors import InputError
from search_spaces.sections import checked

DOCUMENT: Mapping[str, Any] = {
    "class": "crossbar",
    "title": "8 x 8 cells",
    "source": "this test",
    "clock": "1 MHz",
    "weight_bits": [2, 4],
    "activation_bits": [1, 2, 3, 4],
    "array": {"rows": 8, "columns": 8, "cell_bits": 2},
    "crossbars": 10,
    "dac_bits": 1,
    "adc": {"bits": 5, "count": 1, "rate": "8 MHz", "energy": "100 pJ"},
    "drive_energy": "10 pJ",
    "cell_energy": "1 pJ",
    "memories": {"buffer": {"size": "1 KiB", "energy": "0 pJ/bit"}},
}
UNITS = {"array": {"rows": 8, "columns": 8, "cell_bits": 2, "read_rows": 4, "read_columns": 4}}
ISAAC = load("isaac")


def made(**changes: Any) -> Crossbar:
    return Crossbar(checked(CrossbarDescription, {**DOCUMENT, **changes}, "test"), ISAAC.technology)


def used(accelerator: Crossbar, **row: Any) -> Usage:
    works = Workloads.of([Workload(**{"weight_bits": 4, "activation_bits": 3, **row})])
    assert accelerator.refusals(works) == [None]
    return accelerator.run(accelerator.fitted(works))


def test_a_layer_that_fills_a_crossbar() -> None:
    """8 inputs, 4 outputs of two cells each; three slices, each a read of all 64 cells."""
    usage = used(made(), in_channels=8, out_channels=4, batch=5)
    assert usage.cycles == 5 * 3
    assert usage.energy_j["compute"] == pytest.approx(5 * 3 * (8 * 100 + 8 * 10 + 64 * 1) * 1e-12)
    assert usage.traffic["buffer"].read_bits == 5 * 8 * 3
    assert usage.traffic["buffer"].written_bits == 5 * 4 * 3


def test_a_layer_over_crossbars() -> None:
    """9 inputs and 5 outputs: two crossbars down, two across; sums of both rows of crossbars are converted."""
    usage = used(made(), in_channels=9, out_channels=5)
    assert usage.cycles == 3
    assert usage.energy_j["compute"] == pytest.approx(3 * (2 * 10 * 100 + 2 * 9 * 10 + 9 * 10 * 1) * 1e-12)
    assert usage.traffic["buffer"].read_bits == 2 * 9 * 3
    assert used(made(shared_inputs=2), in_channels=9, out_channels=5).traffic["buffer"].read_bits == 9 * 3


def test_operation_units_are_read_one_after_the_other() -> None:
    """4 x 4 cells at once: four reads of a full crossbar, each sum converted for both halves of the rows."""
    usage = used(made(**UNITS), in_channels=8, out_channels=4)
    assert usage.cycles == 3 * 4
    assert usage.energy_j["compute"] == pytest.approx(3 * (2 * 8 * 100 + 2 * 8 * 10 + 64 * 1) * 1e-12)


def test_fewer_bits_take_fewer_cells_and_slices() -> None:
    usage = used(made(), in_channels=8, out_channels=4, weight_bits=2, activation_bits=1)
    assert usage.cycles == 1
    assert usage.energy_j["compute"] == pytest.approx((4 * 100 + 8 * 10 + 32 * 1) * 1e-12)


def test_slow_converters_hold_up_the_crossbar() -> None:
    slow = {**DOCUMENT["adc"], "rate": "2 MHz"}
    assert used(made(adc=slow), in_channels=8, out_channels=4).cycles == 3 * 4
    assert used(made(adc=slow), in_channels=8, out_channels=1).cycles == 3, "two columns only"
    assert used(made(adc={**slow, "count": 4}), in_channels=8, out_channels=4).cycles == 3


def test_groups_and_depthwise_layers_have_crossbars_of_their_own() -> None:
    usage = used(made(), groups=6, kernel_height=2, kernel_width=2, in_height=3, in_width=3, out_height=2, out_width=2)
    assert usage.cycles == 4 * 3
    assert usage.energy_j["compute"] == pytest.approx(6 * 4 * 3 * (2 * 100 + 4 * 10 + 8 * 1) * 1e-12)


def test_steps_follow_one_another_and_copies_do_not_help_them() -> None:
    shape = {"in_channels": 8, "out_channels": 4, "steps": 7}
    assert used(made(pipeline=2), **shape).cycles == 7 * (3 + 2)
    assert used(made(copies=5), **shape).cycles == 7 * 3


def test_copies_share_the_rows_as_far_as_they_fit() -> None:
    assert used(made(copies=4), in_channels=8, out_channels=4, batch=12).cycles == 3 * 3
    assert used(made(copies=4), in_channels=24, out_channels=4, batch=12).cycles == 4 * 3, "three copies fit"


@pytest.mark.parametrize(
    ("zeros", "skips", "gain"),
    [
        (Zeros.ANYWHERE, {"skips_blocks": True}, 1.0),
        (Zeros.BLOCKS, {}, 1.0),
        (Zeros.BLOCKS, {"skips_blocks": True}, 0.5),
        (Zeros.FILTERS, {}, 0.5),
    ],
)
def test_zeros_help_where_whole_rows_or_columns_are_zero(zeros: Zeros, skips: dict[str, bool], gain: float) -> None:
    accelerator = made(**UNITS, **skips)
    dense = used(accelerator, in_channels=8, out_channels=4)
    sparse = used(accelerator, in_channels=8, out_channels=4, zeros=zeros, weight_density=0.5)
    assert sparse.cycles == dense.cycles * gain
    assert sparse.energy_j["compute"] == pytest.approx(dense.energy_j["compute"] * gain)


def test_rows_without_input_are_left_out_where_the_hardware_can() -> None:
    shape = {"in_channels": 8, "out_channels": 4}
    for skips, cycles in ((False, 12), (True, 6)):
        assert used(made(**UNITS, skips_activations=skips), **shape, activation_density=0.5).cycles == cycles
    assert used(made(skips_activations=True), **shape, activation_density=0.5).cycles == 3, "a read is a read"


def test_what_does_not_fit_is_refused() -> None:
    works = Workloads.of(
        [
            Workload(in_channels=81, out_channels=4, weight_bits=4, activation_bits=4),
            Workload(in_channels=80, out_channels=4, weight_bits=4, activation_bits=4),
            Workload(weight_bits=4, activation_bits=4, product=1),
        ]
    )
    large, fits, product = made().refusals(works)
    assert large == "its weights take 11 crossbars; the chip has 10"
    assert fits is None
    assert product is not None
    assert "computed" in product


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adc": {**DOCUMENT["adc"], "bits": 4}}, "has 5 bits, an ADC 4; read fewer rows at once"),
        ({"array": {**DOCUMENT["array"], "read_rows": 3}}, "operation units tile a crossbar"),
        ({"array": {**DOCUMENT["array"], "read_columns": 1}}, "takes 2 cells; only 1 columns"),
        ({"array": {**DOCUMENT["array"], "rows": 0}}, "array.rows"),
        ({"crossbars": -1}, "crossbars"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        made(**changes)
    assert "\n" not in str(caught.value)


def test_an_inverted_column_saves_the_converter_a_bit() -> None:
    array = {**DOCUMENT["array"], "inverted": True}
    made(array=array, adc={**DOCUMENT["adc"], "bits": 4})


class TestOperationUnits(AcceleratorConformance):
    """ISAAC with operation units of 16 x 16 cells that leave zeros out, and copies."""

    @pytest.fixture(autouse=True)
    def _described(self, tmp_path: Path) -> None:
        text = Path("configs/accelerators/isaac.yaml")
        path = Path(__file__).resolve().parents[2] / text
        lines = [line for line in path.read_text().splitlines() if not line.startswith(("array:", "clock:"))]
        lines += ["array: {rows: 128, columns: 128, cell_bits: 2, read_rows: 16, read_columns: 16}", "clock: 100 MHz"]
        lines += ["skips_blocks: true", "skips_activations: true", "copies: 4"]
        self.path = tmp_path / "units.yaml"
        self.path.write_text("\n".join(lines))

    def make(self) -> Accelerator[Any]:
        return load(self.path)
