"""Memory levels: cycles and energy of what moves, by hand."""

from typing import Any

import numpy as np
import pytest

from backends.accelerators.catalogue import load
from backends.accelerators.memory import Memory, MemorySection, Traffic
from search_spaces.errors import InputError
from search_spaces.sections import checked

TECHNOLOGY = load("cpu_avx512").technology
MOVED = Traffic(np.array([600.0, 0.0]), np.array([200.0, 100.0]))


def level(**keys: Any) -> Memory:
    return Memory.of("level", checked(MemorySection, keys, "test"), 1e8, TECHNOLOGY)


@pytest.mark.parametrize(
    ("keys", "cycles"),
    [
        ({}, [0, 0]),
        ({"bandwidth": "10 bit/cycle"}, [80, 10]),
        ({"bandwidth": "1 Gbit/s"}, [80, 10]),
        ({"width": "10 bit"}, [80, 10]),
        ({"width": "10 bit", "bandwidth": "20 bit/cycle"}, [40, 5]),
        ({"read_bandwidth": "10 bit/cycle"}, [60, 0]),
        ({"write_bandwidth": "10 bit/cycle"}, [20, 10]),
        ({"read_bandwidth": "100 bit/cycle", "write_bandwidth": "10 bit/cycle"}, [20, 10]),
    ],
)
def test_cycles(keys: dict[str, str], cycles: list[float]) -> None:
    assert level(**keys).cycles(MOVED).tolist() == pytest.approx(cycles)


@pytest.mark.parametrize(
    ("keys", "joules"),
    [
        ({"energy": "1 pJ/bit"}, [800, 100]),
        ({"width": "8 B", "access_energy": "64 pJ"}, [800, 100]),
        ({"energy": "1 pJ/bit", "write_energy": "3 pJ/bit"}, [1200, 300]),
        ({"read_energy": "2 pJ/bit", "write_energy": "0 pJ/bit"}, [1200, 0]),
    ],
)
def test_energy(keys: dict[str, str], joules: list[float]) -> None:
    assert (level(**keys).energy_j(MOVED) * 1e12).tolist() == pytest.approx(joules)


def test_energy_is_the_technology_s_where_none_is_given() -> None:
    assert level().read_j == level().write_j == TECHNOLOGY.dram
    small = level(size="8 KiB")
    assert small.read_j == small.write_j == TECHNOLOGY.sram_j_per_bit(65536)


def test_a_double_buffered_level_leaves_half_of_it_to_a_tile() -> None:
    assert level(size="1 KiB").usable_bits == 8192
    assert level(size="1 KiB", double_buffered=True).usable_bits == 4096
    assert level().usable_bits == np.inf


@pytest.mark.parametrize("keys", [{}, {"width": "8 B", "energy": "1 pJ/bit"}])
def test_the_energy_of_an_access_needs_its_width_alone(keys: dict[str, str]) -> None:
    with pytest.raises(InputError, match="give a width, and no energy"):
        level(access_energy="64 pJ", **keys)


def test_one_bandwidth_or_two() -> None:
    with pytest.raises(InputError, match="give either"):
        level(bandwidth="1 bit/cycle", write_bandwidth="1 bit/cycle")


def test_bits_of_both_directions() -> None:
    assert MOVED.bits.tolist() == [800, 100]
