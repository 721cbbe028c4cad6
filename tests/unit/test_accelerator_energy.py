"""Energies of a technology: Horowitz' table as it is shipped, between its entries and beyond."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.accelerators.catalogue import load
from backends.accelerators.energy import Technology, access_j_per_bit
from backends.accelerators.workloads import IntArray
from search_spaces.errors import InputError
from search_spaces.sections import checked

HOROWITZ = load("cpu_avx512").technology
KIB = 8192.0
DOCUMENT: dict[str, Any] = {
    "name": "made up",
    "source": "this test",
    "multiply_8": "0.2 pJ",
    "add_32": "0.1 pJ",
    "multiply_float": "4 pJ",
    "add_float": "1 pJ",
    "sram": {"8 KiB": "0.1 pJ/bit"},
    "register": "0.01 pJ/bit",
    "dram": "30 pJ/bit",
}


def bits(*numbers: int) -> IntArray:
    return np.array(numbers)


def test_the_table_itself() -> None:
    """10, 20 and 100 pJ for 64 bits of 8 KB, 32 KB and 1 MB (Horowitz, ISSCC 2014)."""
    for size, energy in ((8, 10e-12), (32, 20e-12), (1024, 100e-12)):
        assert HOROWITZ.sram_j_per_bit(size * KIB) * 64 == pytest.approx(energy)
    assert HOROWITZ.mac_j(bits(8), bits(8))[0] == pytest.approx(0.2e-12 + 0.1e-12)
    assert HOROWITZ.mac_j(bits(32), bits(32))[0] == pytest.approx(3.7e-12 + 0.9e-12)


def test_between_the_sizes_it_is_a_line_on_logarithmic_axes_and_goes_on_beyond() -> None:
    assert HOROWITZ.sram_j_per_bit(16 * KIB) * 64 == pytest.approx(10e-12 * 2**0.5)
    assert HOROWITZ.sram_j_per_bit(4 * KIB) * 64 == pytest.approx(10e-12 / 2**0.5)
    slope = np.log(5) / np.log(32)
    assert HOROWITZ.sram_j_per_bit(2048 * KIB) * 64 == pytest.approx(100e-12 * 2**slope)


def test_a_table_of_one_size_is_for_all_sizes() -> None:
    technology = checked(Technology, DOCUMENT, "test")
    assert technology.sram_j_per_bit(1.0) == technology.sram_j_per_bit(1e9) == pytest.approx(0.1e-12)


def test_what_has_no_size_is_dram() -> None:
    assert access_j_per_bit(HOROWITZ, None) == HOROWITZ.dram
    assert access_j_per_bit(HOROWITZ, 8 * KIB) == HOROWITZ.sram_j_per_bit(8 * KIB)


@given(*[st.integers(1, 32)] * 4)
def test_fewer_bits_never_cost_more(weight: int, activation: int, fewer: int, less: int) -> None:
    energies = HOROWITZ.mac_j(bits(weight, min(weight, fewer)), bits(activation, min(activation, less)))
    assert energies[1] <= energies[0]


@given(st.floats(1.0, 1e12), st.floats(1.0, 1e12))
def test_a_larger_memory_never_costs_less(one: float, other: float) -> None:
    small, large = sorted([one, other])
    assert HOROWITZ.sram_j_per_bit(small) <= HOROWITZ.sram_j_per_bit(large) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sram", {}, "SRAM energies are a mapping"),
        ("sram", "0.1 pJ/bit", "SRAM energies are a mapping"),
        ("sram", {"8 KiB": "0 pJ/bit", "16 KiB": "1 pJ/bit"}, "above 0"),
        ("sram", {"8 KiB": "1 pJ/bit", "8192 B": "2 pJ/bit"}, "each size once"),
        ("sram", {"8 KiB": "2 pJ/bit", "16 KiB": "1 pJ/bit"}, "at least as much"),
        ("sram", {"8": "2 pJ/bit"}, "a size is a number and a unit"),
        ("dram", "-1 pJ/bit", "at least 0"),
        ("register", "1 pJ", "no unit"),
        ("multiply_8", 0.2, "an? energy is a number and a unit"),
        ("fpu", "1 pJ", "unknown key 'fpu'"),
    ],
)
def test_bad_tables_are_refused_in_one_line(key: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        checked(Technology, {**DOCUMENT, key: value}, "test")
    assert "\n" not in str(caught.value)
