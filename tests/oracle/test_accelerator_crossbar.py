"""The published peak of ISAAC, from the powers of its parts (Shafiee et al., ISCA 2016); nothing is fitted."""

import pytest

from backends.accelerators.catalogue import load
from backends.accelerators.workloads import Workload, Workloads

AREA_MM2, POWER_W = 85.4, 65.8
"""Of the chip, Table I."""
PUBLISHED_GOPS_PER_MM2, PUBLISHED_GOPS_PER_W = 478.95, 627.5
"""Table IV of the corrected version of October 2016."""
FULL = Workload(
    batch=1000, in_channels=126 * 128, out_channels=128 * 16, weight_bits=16, activation_bits=16
)  # 126 x 128 crossbars: all of them


def test_peak_per_area() -> None:
    """Within 1 %."""
    isaac = load("isaac")
    works = Workloads.of([FULL])
    usage = isaac.run(isaac.fitted(works))
    gops = 2 * works.macs / (usage.cycles / isaac.description.clock) / 1e9
    assert gops / AREA_MM2 == pytest.approx(PUBLISHED_GOPS_PER_MM2, rel=0.01)


def test_peak_per_watt() -> None:
    """6 % above: the paper charges the eDRAM at its full rate, of which a layer of the chip's size takes a fifth. With
    the eDRAM and its bus at their full rate (27.7 mW a tile) it is the published figure."""
    isaac = load("isaac")
    works = Workloads.of([FULL])
    usage = isaac.run(isaac.fitted(works))
    operations = 2 * works.macs
    assert operations / usage.total_energy_j / 1e9 == pytest.approx(1.06 * PUBLISHED_GOPS_PER_W, rel=0.005)
    seconds = usage.cycles / isaac.description.clock
    busy = usage.total_energy_j - usage.energy_j["buffer"] + 168 * 27.7e-3 * seconds
    assert operations / busy / 1e9 == pytest.approx(PUBLISHED_GOPS_PER_W, rel=0.005)
    assert busy / seconds == pytest.approx(POWER_W, rel=0.005)


def test_converters_take_half_of_the_power() -> None:
    """'The ADCs account for nearly half the chip power' (section X): 168 x 12 x 16 mW of 65.8 W."""
    isaac = load("isaac")
    usage = isaac.run(isaac.fitted(Workloads.of([FULL])))
    conversions = 1000 * 16 * 126 * 128 * 128  # rows, slices, crossbars and columns
    share = conversions * isaac.description.adc.energy / usage.total_energy_j
    assert share == pytest.approx(168 * 12 * 16e-3 / POWER_W, abs=0.04)
