"""Quantities with units: what each text means, and what is refused in one line."""

import pytest
from pydantic import Field

from backends.accelerators.quantities import (
    Bandwidth,
    Bits,
    Hertz,
    Joules,
    JoulesPerBit,
    MacsPerSecond,
    PerCycle,
    Seconds,
    Watts,
)
from search_spaces.errors import InputError
from search_spaces.sections import Section, checked


class Everything(Section):
    clock: Hertz | None = None
    power: Watts | None = None
    time: Seconds | None = None
    energy: Joules | None = None
    access: JoulesPerBit | None = None
    size: Bits | None = None
    peak: MacsPerSecond | None = None
    bandwidth: PerCycle | None = Field(default=None)


def read(key: str, text: object) -> object:
    return getattr(checked(Everything, {key: text}, "test"), key)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("clock", "200 MHz", 2e8),
        ("clock", "1.2GHz", 1.2e9),
        ("clock", " 5e5  Hz ", 5e5),
        ("power", "278 mW", 0.278),
        ("power", "0 W", 0.0),
        ("time", "10 µs", 1e-5),
        ("time", "10 us", 1e-5),
        ("energy", "1.831 fJ", 1.831e-15),
        ("access", "30 pJ/bit", 30e-12),
        ("access", "8 nJ/KiB", 8e-9 / 8192),
        ("size", "108 KiB", 108 * 8192),
        ("size", "108 kB", 864e3),
        ("size", "3 Mibit", 3 * 2**20),
        ("size", "1 GiB", 2**33),
        ("peak", "4 TOP/s", 2e12),
        ("peak", "64 GMAC/s", 64e9),
    ],
)
def test_what_a_quantity_means(key: str, text: str, value: float) -> None:
    assert read(key, text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "clock_hz", "bits"),
    [("64 bit/cycle", 1.0, 64), ("8 B/cycle", 1e9, 64), ("25.6 GB/s", 2e8, 1024), ("1 Gbit/s", 5e8, 2)],
)
def test_bandwidths_follow_the_clock_or_not(text: str, clock_hz: float, bits: float) -> None:
    found = read("bandwidth", text)
    assert isinstance(found, Bandwidth)
    assert found.bits_per_cycle(clock_hz) == pytest.approx(bits)


@pytest.mark.parametrize("key", sorted(Everything.model_fields))
@pytest.mark.parametrize(
    "value",
    [200, 200.5, -1.0, float("inf"), "", "200", "MHz", "1 2 MHz", "nan Hz", ".. Hz", [1], {"MHz": 1}, True, b"1 J"],
)
def test_what_has_no_number_or_no_unit_is_refused_in_one_line(key: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"test: {key}: .* is a number and a unit, such as '4 .*', got ") as caught:
        read(key, value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "unit"),
    [
        ("clock", "Hz"),
        ("power", "W"),
        ("time", "s"),
        ("energy", "J"),
        ("access", "pJ/bit"),
        ("size", "KiB"),
        ("peak", "GMAC/s"),
        ("bandwidth", "GB/s"),
    ],
)
def test_amounts_out_of_range_are_refused_in_one_line(key: str, unit: str) -> None:
    for number in ("-1", "1e999", "1e308" if unit.startswith("G") else "-1e-9"):
        with pytest.raises(InputError, match=rf"test: {key}: .* 0 and finite, got '{number} {unit}'"):
            read(key, f"{number} {unit}")
    if key in ("power", "time", "energy", "access"):
        assert read(key, f"0 {unit}") == 0
    else:
        with pytest.raises(InputError, match="is above 0"):
            read(key, f"0 {unit}")


@pytest.mark.parametrize(
    ("key", "text", "hint"),
    [
        ("clock", "200 Mhz", "MHz"),
        ("clock", "200 MB/s", "Hz"),
        ("size", "108 kb", "kB"),
        ("size", "108 MHz", "bit"),
        ("access", "3 pJ", "J/bit"),
        ("bandwidth", "64 bit", "bit/cycle"),
        ("peak", "4 TFLOPS", "MAC/s"),
    ],
)
def test_unknown_units_are_named_beside_known_ones(key: str, text: str, hint: str) -> None:
    with pytest.raises(InputError, match="is no unit of a") as caught:
        read(key, text)
    assert hint in str(caught.value).split("is no unit")[1]
    assert "\n" not in str(caught.value)
