"""Sparse accelerators against published figures: EIE's times, and efficiencies that surveys quote.

Nothing in these models was fitted. Published powers of parts (EIE's clock network, arithmetic and registers; the
selector of Cambricon-X) are inputs; powers of whole chips are not, but for ESE, nor are efficiencies.
"""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.accelerators.accelerator import Usage
from backends.accelerators.catalogue import load
from backends.accelerators.sparse import SparseArray
from backends.accelerators.workloads import FloatArray, Workload, Workloads, Zeros

INCEPTION = [
    # size, inputs, 1x1, reduced for 3x3, 3x3, reduced for 5x5, 5x5, pooled (Szegedy et al., CVPR 2015, Table 1)
    (28, 192, 64, 96, 128, 16, 32, 32),
    (28, 256, 128, 128, 192, 32, 96, 64),
    (14, 480, 192, 96, 208, 16, 48, 64),
    (14, 512, 160, 112, 224, 24, 64, 64),
    (14, 512, 128, 128, 256, 24, 64, 64),
    (14, 512, 112, 144, 288, 32, 64, 64),
    (14, 528, 256, 160, 320, 32, 128, 128),
    (7, 832, 256, 160, 320, 32, 128, 128),
    (7, 832, 384, 192, 384, 48, 128, 128),
]
VGG_19 = [(3, 64, 224), (64, 64, 224), (64, 128, 112), (128, 128, 112), (128, 256, 56), *[(256, 256, 56)] * 3]
VGG_19 += [(256, 512, 28), *[(512, 512, 28)] * 3, *[(512, 512, 14)] * 4]


def matrix(inputs: int, outputs: int, **other: Any) -> Workload:
    return Workload(in_channels=inputs, out_channels=outputs, **other)


def convolution(size: int, inputs: int, outputs: int, kernel: int, **other: Any) -> Workload:
    sides = {f"{place}_{axis}": size for place in ("in", "out") for axis in ("height", "width")}
    sides |= {"kernel_height": kernel, "kernel_width": kernel, "weight_bits": 16, "activation_bits": 16}
    return Workload(in_channels=inputs, out_channels=outputs, **sides, **other)


def run(name: str, rows: list[Workload]) -> tuple[Workloads, Usage]:
    accelerator = load(name)
    works = Workloads.of(rows)
    assert accelerator.refusals(works) == [None] * len(works)
    works = accelerator.fitted(works)
    return works, accelerator.run(works)


def on_chip_j(usage: Usage) -> FloatArray:
    """Chips' powers are published without that of their DRAM."""
    return np.asarray(usage.total_energy_j - usage.energy_j["dram"])


@pytest.fixture(scope="module")
def eie(oracles: Path) -> dict[str, tuple[Workload, float, float]]:
    """Layer -> what it is, theoretical and actual microseconds (Han et al., ISCA 2016, Tables III and IV)."""
    with (oracles / "eie_shapes.csv").open() as file:
        shapes = {row["layer"].replace(" ", ""): row for row in csv.DictReader(file)}
    with (oracles / "eie-layers.csv").open() as file:
        names, theoretical, actual = csv.reader(file)
    found = {}
    for name, least, real in zip(names[1:], theoretical[1:], actual[1:], strict=True):
        row = shapes[name.replace(" ", "")]
        shape = matrix(int(row["rows"]), int(row["cols"]), weight_bits=4, activation_bits=16, zeros=Zeros.ANYWHERE)
        densities: dict[str, Any] = {key: float(row[key]) for key in ("weight_density", "activation_density")}
        work = replace(shape, **densities)
        found[name.replace(" ", "")] = (work, float(least), float(real))
    return found


def test_eie_takes_its_actual_time(eie: dict[str, tuple[Workload, float, float]]) -> None:
    """8 % on average; VGG16 FC6 27 % below: its theoretical time is 22 % above nonzeros and stored zeros at 4 %."""
    works, usage = run("eie", [work for work, _, _ in eie.values()])
    error = usage.cycles / 800 / np.array([actual for _, _, actual in eie.values()]) - 1
    assert len(works) == 9
    assert np.abs(error).mean() < 0.09
    assert np.abs(error).max() < 0.28
    assert abs(error[list(eie).index("NT-We")]) < 0.02


def test_eie_without_waiting_takes_its_theoretical_time(eie: dict[str, tuple[Workload, float, float]]) -> None:
    """Where queues never fill: nonzeros and stored zeros. The table has densities in whole percents: 4 may be 4.5."""
    accelerator = load("eie")
    endless = SparseArray(accelerator.description.model_copy(update={"queue": 10**9}), accelerator.technology)
    works = endless.fitted(Workloads.of(work for work, _, _ in eie.values()))
    error = endless.run(works).cycles / 800 / np.array([least for _, least, _ in eie.values()]) - 1
    assert np.abs(error).mean() < 0.12
    assert np.abs(np.delete(error, list(eie).index("NT-We"))).max() < 0.21  # it has columns without a nonzero


def test_eie_is_as_efficient_as_published(eie: dict[str, tuple[Workload, float, float]]) -> None:
    """5 TOPS/W counts the operations of the dense layer (3 TOPS) at 0.59 W; AlexNet's FC7 was measured (Table V)."""
    works, usage = run("eie", [eie["AlexNetFC7"][0]])
    watts = usage.total_energy_j / usage.cycles * 800e6
    assert watts[0] == pytest.approx(0.59, rel=0.15)
    assert 2e-12 * works.macs[0] / usage.total_energy_j[0] == pytest.approx(5.0, rel=0.05)


def test_cambricon_x_is_as_efficient_as_published() -> None:
    """570 GOPS/W is the peak, 544 GOP/s, at 954 mW: here a dense layer's 512. One third of the power is an input."""
    works, usage = run("cambricon_x", [convolution(56, 256, 256, 3)])
    assert 2 * works.macs[0] / usage.compute_cycles[0] == 512
    assert 2e-9 * works.macs[0] / on_chip_j(usage)[0] == pytest.approx(570, rel=0.05)


def test_cambricon_x_selects_no_more_than_a_sixteenth() -> None:
    """Its selector has 256 numbers for 16 multipliers."""
    rows = [convolution(14, 512, 256, 3, weight_density=density, zeros=Zeros.ANYWHERE) for density in (0.03, 0.001)]
    _, usage = run("cambricon_x", [convolution(14, 512, 256, 3), *rows])
    assert (usage.compute_cycles[0] / usage.compute_cycles[1:]).tolist() == pytest.approx([16, 16])


def test_nullhop_is_as_efficient_as_published() -> None:
    """3 TOPS/W counts dense operations, 471 GOP/s on VGG-19 with 98 % of the multipliers busy: so 0.98 / 3.68 of the
    values it reads are nonzeros, which is an input here."""
    density = 0.98 / 3.68
    rows = [convolution(size, c, n, 3, activation_density=density if c > 3 else 1.0) for c, n, size in VGG_19]
    works, usage = run("nullhop", rows)
    seconds = usage.cycles.sum() / 500e6
    assert 2e-9 * works.macs.sum() / seconds == pytest.approx(471, rel=0.03)
    assert usage.utilisation.min() > 0.98
    assert 2e-12 * works.macs.sum() / on_chip_j(usage).sum() == pytest.approx(3.0, rel=0.15)


def test_ese_is_slower_than_modelled() -> None:
    """61.5 GOPS/W counts the dense operations (2.52 TOPS) at 41 W, which are an input. Modelled a fifth too fast: its
    memory, the parts of the cell beside products, and what fills its pipelines are not modelled."""
    cell = {"batch": 32, "weight_bits": 12, "activation_bits": 16, "weight_density": 0.112, "zeros": Zeros.ANYWHERE}
    works, usage = run("ese", [matrix(153, 4096, **cell), matrix(512, 4096, **cell), matrix(1024, 512, **cell)])
    assert works.weights.sum() == 3248128
    found = 2e-9 * works.macs.sum() / usage.total_energy_j.sum()
    assert found / 61.5 == pytest.approx(1.22, abs=0.03)


def inception(density: float) -> list[Workload]:
    common = {"weight_density": density, "activation_density": density, "zeros": Zeros.ANYWHERE}
    rows = []
    for size, inputs, direct, reduced_3, outputs_3, reduced_5, outputs_5, pooled in INCEPTION:
        ones = [(inputs, direct, 1), (inputs, reduced_3, 1), (inputs, reduced_5, 1), (inputs, pooled, 1)]
        for c, n, kernel in [*ones, (reduced_3, outputs_3, 3), (reduced_5, outputs_5, 5)]:
            rows.append(convolution(size, c, n, kernel, **common))
    return rows


def test_scnn_gains_as_published_when_density_falls() -> None:
    """On GoogLeNet 0.79 of a dense design's pace where all are nonzeros, and 24 times it where a tenth of weights and
    of values are (Parashar et al., ISCA 2017, Figure 7): 30 times. Modelled 21: a lane's vectors of weights start anew
    for each input channel and each eight outputs."""
    cycles = [run("scnn", inception(density))[1].compute_cycles.sum() for density in (1.0, 0.4, 0.1)]
    assert cycles[0] / cycles[2] == pytest.approx(24 / 0.79, rel=0.35)
    assert cycles[0] > cycles[1] > cycles[2]


def test_scnn_runs_linear_layers_at_a_quarter_of_its_peak() -> None:
    """As the paper says."""
    works, usage = run("scnn", [matrix(4096, 4096, weight_bits=16, activation_bits=16)])
    assert works.macs[0] / usage.compute_cycles[0] == 1024 / 4


@pytest.mark.parametrize(("bits", "peak"), [(16, 312), (8, 624), (4, 1248)])
def test_sparse_tensor_cores_reach_their_peaks(bits: int, peak: int) -> None:
    """Dense, and twice that for 2:4 (A100 white paper)."""
    whole = {"in_height": 13824, "out_height": 13824, "weight_bits": bits, "activation_bits": bits}
    sparse = {"zeros": Zeros.WINDOWS, "window": 4, "weight_density": 0.5}
    works, usage = run("sparse_tensor_core", [matrix(4096, 8192, **whole), matrix(4096, 8192, **whole, **sparse)])
    found = 2e-12 * works.macs / usage.compute_cycles * 1.41e9
    assert found.tolist() == pytest.approx([peak, 2 * peak], rel=0.005)
