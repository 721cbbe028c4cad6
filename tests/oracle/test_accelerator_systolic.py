"""Systolic arrays against SCALE-Sim 3.0 and the published figures of TPU v1. Nothing was fitted on any of them."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backends.accelerators.accelerator import Usage
from backends.accelerators.catalogue import load
from backends.accelerators.systolic import SystolicArray
from backends.accelerators.workloads import Workload, Workloads

FLOWS = {"os": "output_stationary", "ws": "weight_stationary", "is": "input_stationary"}
ARRAY = """
class: systolic
title: an array without limits of bandwidth, as SCALE-Sim's stall-free runs; every word is a byte
source: none
clock: 1 GHz
weight_bits: [8]
activation_bits: [8]
accumulator_bits: 8
array: {{rows: {rows}, columns: {columns}}}
dataflow: {flow}
memories: {{dram: {{}}, inputs: {{size: 1 GiB}}, weights: {{size: 1 GiB}}, outputs: {{size: 1 GiB}}}}
"""
BOARD = Workload(  # a layer of CNN0, as far as it is known
    in_channels=256,
    out_channels=256,
    kernel_height=3,
    kernel_width=3,
    in_height=19,
    in_width=19,
    out_height=19,
    out_width=19,
    batch=8,
    weight_bits=8,
    activation_bits=8,
)
OWN_RUNS = [  # SCALE-Sim 3.0.0 on a 24 x 40 array: dataflow, layer, cycles, reads of inputs and filters, output writes
    ("os", "a", 3803, 71400, 76500, 7768),
    ("os", "b", 354, 900, 45, 420),
    ("os", "c", 1447, 1200, 39000, 386),
    ("ws", "a", 4971, 71400, 12750, 77000),
    ("ws", "b", 185, 900, 9, 100),
    ("ws", "c", 4523, 1200, 39000, 1690),
    ("is", "a", 5983, 35700, 51000, 77000),
    ("is", "b", 260, 900, 27, 100),
    ("is", "c", 2807, 300, 39000, 1690),
]


def layer(sizes: Mapping[str, str]) -> Workload:
    """One group of a row of the table, borders being part of its sizes; SCALE-Sim rounds output sizes up."""
    columns = ("ih", "iw", "fh", "fw", "c", "m", "stride")
    high, wide, kernel_high, kernel_wide, inputs, outputs, stride = (int(sizes[name]) for name in columns)
    return Workload(
        in_channels=inputs,
        out_channels=outputs,
        kernel_height=kernel_high,
        kernel_width=kernel_wide,
        stride_height=stride,
        stride_width=stride,
        in_height=high,
        in_width=wide,
        out_height=-(-(high - kernel_high) // stride) + 1,
        out_width=-(-(wide - kernel_wide) // stride) + 1,
        weight_bits=8,
        activation_bits=8,
    )


LAYERS = {
    name: layer(dict(zip(("ih", "iw", "fh", "fw", "c", "m", "stride"), sizes.split(), strict=True)))
    for name, sizes in {"a": "30 21 5 3 17 50 2", "b": "12 12 3 3 1 1 1", "c": "1 1 1 1 300 130 1"}.items()
}


@pytest.fixture
def array(tmp_path: Path) -> Callable[[str, int, int], SystolicArray]:
    """An array of a dataflow and size, from a description on disk."""

    def build(flow: str, rows: int, columns: int) -> SystolicArray:
        path = tmp_path / f"{flow}_{rows}x{columns}.yaml"
        path.write_text(ARRAY.format(flow=FLOWS[flow], rows=rows, columns=columns))
        found = load(path)
        assert isinstance(found, SystolicArray)
        return found

    return build


def counts(usage: Usage) -> list[int]:
    """Cycles, then numbers that are read of inputs and weights, and written of outputs."""
    traffic = usage.traffic
    bits = [traffic["inputs"].read_bits, traffic["weights"].read_bits, traffic["outputs"].written_bits]
    return [int(column[0]) for column in (usage.cycles, *(each / 8 for each in bits))]


def slip(flow: str, usage_folds: int, rows: int, columns: int) -> int:
    """What SCALE-Sim 3.0 counts too much of outputs written where they are stationary: it adds the sides of the array
    for each fold (`create_ofmap_demand_mat`), after having counted the outputs themselves."""
    return usage_folds * (rows + columns) if flow == "os" else 0


def folds_of(model: SystolicArray, works: Workloads) -> int:
    found = model.folds(works)
    return int(found.down[0] * found.across[0])


def test_every_row_of_the_scalesim_table_is_exact(
    oracles: Path, array: Callable[[str, int, int], SystolicArray]
) -> None:
    with (oracles / "scalesim_cycles.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        high, wide = map(int, row["array"].split("x"))
        model, works = array(row["dataflow"], high, wide), Workloads.of([layer(row)])
        usage = model.run(model.fitted(works))
        expected = [int(row[name]) for name in ("cycles", "sram_ifmap_reads", "sram_filter_reads")]
        expected.append(
            int(row["sram_ofmap_writes"]) - slip(row["dataflow"], folds_of(model, works), high, wide),
        )
        assert counts(usage) == expected, row
        assert works.macs[0] == int(row["macs"])
        assert 100 * usage.utilisation[0] == pytest.approx(float(row["util_pct"]), abs=1e-4)


@pytest.mark.parametrize(("flow", "name", "cycles", "inputs", "filters", "outputs"), OWN_RUNS)
def test_an_array_that_is_no_square_is_exact(
    array: Callable[[str, int, int], SystolicArray],
    flow: str,
    name: str,
    cycles: int,
    inputs: int,
    filters: int,
    outputs: int,
) -> None:
    model, works = array(flow, 24, 40), Workloads.of([LAYERS[name]])
    written = outputs - slip(flow, folds_of(model, works), 24, 40)
    assert counts(model.run(works)) == [cycles, inputs, filters, written]


def matrix(depth: int, columns: int, batch: int) -> Workload:
    return Workload(batch=batch, in_channels=depth, out_channels=columns, weight_bits=8, activation_bits=8)


def tera_operations(rows: Sequence[Workload]) -> float:
    """A second, of a multiplication and an addition each, as Jouppi et al. count."""
    model = load("tpu_v1")
    works = Workloads.of(rows)
    seconds = model.run(model.fitted(works)).cycles.sum() / model.description.clock
    return float(2 * works.macs.sum() / seconds / 1e12)


@pytest.mark.parametrize(("side", "published_us"), [(256, 18.0), (512, 32.0)])
def test_tpu_tiles_of_a_600_x_600_matrix_take_the_published_time(side: int, published_us: float) -> None:
    """Jouppi et al. 2017, section 7: nine steps of 256 x 256, or four of 512 x 512 that take four times as long each;
    they round a step to 2 us (64 KiB at 34 GB/s are 1.93)."""
    shipped = load("tpu_v1")
    grid = shipped.description.array.model_copy(update={"rows": side, "columns": side})
    description = shipped.description.model_copy(update={"array": grid, "weight_tile": grid})
    model = SystolicArray(description, shipped.technology)
    usage = model.run(Workloads.of([matrix(600, 600, 96)]))
    assert usage.cycles[0] / description.clock * 1e6 == pytest.approx(published_us, rel=0.04)
    assert usage.limits() == ["dram"]


def test_tpu_reaches_the_published_rates_of_its_applications() -> None:
    """Jouppi et al. 2017, Tables 1 and 3. Shapes are inferred: MLP0 has 20 M weights in 5 layers; LSTM0 leaves no unit
    of the array unused, so its sides are multiples of 256; CNN0 neither, and its 2888 products a weight are 8 boards of
    19 x 19. The model knows no stalls for dependent instructions or input, 9 to 20 % of the MLP's and LSTM's cycles."""
    assert tera_operations([matrix(2000, 2000, 200)] * 5) / 12.3 == pytest.approx(1.05, abs=0.01)
    assert tera_operations([matrix(1024, 1024, 64)]) / 3.7 == pytest.approx(1.18, abs=0.01)
    assert tera_operations([BOARD]) / 86.0 == pytest.approx(1.04, abs=0.01)
    assert tera_operations([matrix(600, 600, 96)]) / 2.8 == pytest.approx(1.42, abs=0.01)


def test_tpu_leaves_the_published_part_of_its_array_empty() -> None:
    """Jouppi et al. 2017, Table 3: of LSTM1's 10.5 % of active cycles 6.3 % are of cells with useful weights; the paper
    names a matrix of 600 x 600 as one of its own."""
    usage = load("tpu_v1").run(Workloads.of([matrix(600, 600, 96)]))
    stored = usage.traffic["weights"].written_bits[0] / 8
    assert 600 * 600 / stored == pytest.approx(6.3 / 10.5, abs=0.02)


def test_tpu_slows_down_with_wide_operands_as_published() -> None:
    """Jouppi et al. 2017, section 2: half the speed with one operand of 16 bits, a quarter with both."""
    model = load("tpu_v1")
    narrow = Workload(batch=4096, in_channels=2048, out_channels=2048, weight_bits=8, activation_bits=8)
    works = Workloads.of([replace(narrow, weight_bits=w, activation_bits=a) for w, a in ((8, 8), (8, 16), (16, 16))])
    cycles = model.run(works).compute_cycles
    np.testing.assert_allclose(cycles / cycles[0], [1, 2, 4], rtol=5e-3)


def test_tpu_power_is_told_with_its_error() -> None:
    """Table 2: 28 W a die at rest (taken as static power), 40 W busy. Energies of 45 nm for a chip of 28 nm: 36 % over,
    memory outside of the die not counted."""
    model = load("tpu_v1")
    works = Workloads.of([BOARD])
    usage = model.run(works)
    seconds = usage.cycles[0] / model.description.clock
    die = (usage.total_energy_j[0] - usage.energy_j["dram"][0]) / seconds
    assert die / 40 == pytest.approx(1.36, abs=0.04)
