"""Lanes that wait for each other, against a simulation of their queues; entries of run lengths, against real ones."""

import numpy as np
import pytest

from backends.accelerators.imbalance import busiest, extreme
from backends.accelerators.sparse_dataflows import expected_ceil
from backends.accelerators.sparse_formats import entries, stored_bits

SLICES = 600


def simulated(positions: int, density: float, lanes: int, queue: int) -> float:
    """Cycles a slice: a slice starts where no lane is more than `queue` slices behind it."""
    work = np.random.default_rng(0).binomial(positions, density, (SLICES, lanes)).astype(float)
    done, ends = np.zeros(lanes), [0.0] * queue
    for cycles in work:
        done = np.maximum(done, ends[-queue]) + cycles
        ends.append(float(done.max()))
    return ends[-1] / SLICES


@pytest.mark.parametrize("positions", [10, 64, 256])
@pytest.mark.parametrize("density", [0.1, 0.3, 0.8])
@pytest.mark.parametrize("lanes", [1, 4, 64])
@pytest.mark.parametrize("queue", [1, 2, 8, 64])
def test_the_busiest_lane_is_the_simulated_one(positions: int, density: float, lanes: int, queue: int) -> None:
    """Within 13 %: it is the skew of few nonzeros, which a normal distribution has not, that is missed."""
    cycles = float(busiest(positions, density, lanes, SLICES, queue))
    error = 0.05 if positions * density > 5 else 0.13
    assert cycles == pytest.approx(simulated(positions, density, lanes, queue), rel=error)


def test_nothing_waits_where_nothing_differs() -> None:
    assert float(busiest(50, 1.0, 64, 10, 1)) == pytest.approx(50)
    assert float(busiest(50, 0.2, 1, 10, 1)) == pytest.approx(10)
    assert float(busiest(50, 0.0, 64, 10, 1, least=1)) == 1
    assert abs(float(extreme(1))) < 1e-12


@pytest.mark.parametrize("queue", [1, 2, 8, 100])
@pytest.mark.parametrize("slices", [1, 50, 1e6])
def test_fewer_nonzeros_and_positions_never_take_longer(queue: int, slices: float) -> None:
    densities = np.linspace(1e-3, 1, 500)
    for positions in (1, 2, 3, 17, 300):
        for lanes in (1, 1.5, 2, 10, 500):
            assert np.diff(busiest(positions, densities, lanes, slices, queue)).min() >= -1e-12
    for density in (1e-3, 0.05, 0.5):
        outputs = np.arange(1, 800)
        for lanes in (1, 3, 64):
            size = -(-outputs // lanes)
            assert np.diff(busiest(size, density, outputs / size, slices, queue, least=1)).min() >= -1e-9
        for channels in (3, 64, 100, 1000):
            size = -(-channels // np.arange(1, 800))  # more lanes
            assert np.diff(busiest(size, density, channels / size, slices, queue, least=1)).max() <= 1e-9


@pytest.mark.parametrize("size", [1, 9, 16, 17, 64, 1000])
@pytest.mark.parametrize("density", [0.02, 0.09, 0.5, 1.0])
def test_entries_are_those_of_real_runs(size: int, density: float) -> None:
    """EIE's own example is in the next test."""
    generator = np.random.default_rng(1)
    columns = [generator.random(size) < density for _ in range(4000)]
    mean = np.mean([coded(column) for column in columns])
    assert float(entries(size, density, 4)) == pytest.approx(mean, rel=0.05, abs=0.01)


def coded(column: np.ndarray) -> int:
    """Entries of a column, run lengths of 4 bits: a zero is stored after each 15, and counts as one of the run."""
    found, zeros = 0, 0
    for nonzero in column:
        zeros, more = (0, 1 + zeros // 16) if nonzero else (zeros + 1, 0)
        found += more
    return found


def test_the_example_of_the_paper() -> None:
    """Han et al., ISCA 2016, Section III-B: three nonzeros and one zero that fills a long run."""
    column = np.array([0, 0, 1, 2, *[0] * 18, 3]) != 0
    assert coded(column) == 4


@pytest.mark.parametrize("form", ["bitmap", "run_length", "rows", "windows"])
def test_stored_bits_fall_with_density_and_never_exceed_dense(form: str) -> None:
    densities = np.linspace(0.001, 1, 300)
    bits = stored_bits(form, 8, densities, 300, 4)  # type: ignore[arg-type]
    assert np.diff(bits).min() >= 0
    assert bits[-1] == 8
    assert bits[0] < 2


def test_stored_bits_by_hand() -> None:
    assert float(stored_bits("bitmap", 16, 0.25, 100, 4)) == 5
    assert float(stored_bits("bitmap", 16, 0.25, 100, 4, 16)) == 4 + 1 / 16
    assert float(stored_bits("windows", 8, 0.5, 100, 2)) == 5
    assert float(stored_bits("rows", 8, 0.1, 1024, 4)) == pytest.approx(1.8 + 16 / 1024)


@pytest.mark.parametrize("size", [4, 9, 72, 200])
@pytest.mark.parametrize("density", [0.1, 0.4, 0.9])
def test_steps_of_several_at_once(size: int, density: float) -> None:
    found = np.random.default_rng(2).binomial(size, density, 20000)
    mean = np.ceil(found / 4).mean()
    assert float(expected_ceil(np.array([size]), np.array([density]), 4)[0]) == pytest.approx(mean, rel=0.05)
    assert float(expected_ceil(np.array([size]), np.array([1.0]), 4)[0]) == -(-size // 4)
