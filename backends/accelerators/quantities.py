"""Quantities with units, as a description holds them: "200 MHz", "108 KiB", "64 bit/cycle", "0.3 pJ/bit"."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator

from search_spaces.errors import did_you_mean

_PREFIXES = {"": 1.0, "f": 1e-15, "p": 1e-12, "n": 1e-9, "u": 1e-6, "µ": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9}
_PREFIXES["T"] = 1e12


def _scaled(unit: str, prefixes: str, factor: float = 1.0) -> dict[str, float]:
    """The unit and its multiples."""
    return {prefix + unit: _PREFIXES[prefix] * factor for prefix in ("", *prefixes)}


_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}
_BITS = {
    **_scaled("bit", "kMG"),
    **_scaled("B", "kMG", 8.0),
    **{prefix + "B": 8.0 * factor for prefix, factor in _BINARY.items()},
    **{prefix + "bit": factor for prefix, factor in _BINARY.items()},
}
FREQUENCY = _scaled("Hz", "kMG")
POWER = _scaled("W", "nuµmk")
TIME = _scaled("s", "numµ")
ENERGY = _scaled("J", "fpnuµm")
ENERGY_PER_BIT = {f"{energy}/{unit}": ENERGY[energy] / bits for energy in ENERGY for unit, bits in _BITS.items()}
RATE = {
    **_scaled("MAC/s", "kMGT"),
    **_scaled("OP/s", "kMGT", 0.5),  # a multiplication and an addition
}
"""Multiply-accumulates a second."""
_PER_CYCLE = {f"{unit}/cycle": bits for unit, bits in _BITS.items()}
_PER_SECOND = {f"{unit}/s": bits for unit, bits in _BITS.items()}


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bits that move in a cycle, or in a second."""

    bits: float
    per_cycle: bool

    def bits_per_cycle(self, clock_hz: float) -> float:
        """At that clock."""
        return self.bits if self.per_cycle else self.bits / clock_hz


def _quantity(units: Mapping[str, float], what: str, *, zero: bool = False) -> Callable[[object], float]:
    def parse(value: object) -> float:
        number, unit = _split(value, units, what)
        amount = number * units[unit]
        if not (math.isfinite(amount) and (amount > 0 or (zero and number == 0))):
            raise ValueError(f"a {what} is {'at least' if zero else 'above'} 0 and finite, got {value!r}")
        return amount

    return parse


def _split(value: object, units: Mapping[str, float], what: str) -> tuple[float, str]:
    example = next(iter(units))
    found = (
        re.fullmatch(r"\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*([^\s\d.]\S*)\s*", value)
        if isinstance(value, str)
        else None
    )
    if found is None:
        raise ValueError(f"a {what} is a number and a unit, such as '4 {example}', got {value!r}")
    try:
        number = float(found[1])
    except ValueError:
        raise ValueError(f"a {what} is a number and a unit, such as '4 {example}', got {value!r}") from None
    if found[2] not in units:
        near = {unit for unit in units if unit.lower() == found[2].lower()}
        raise ValueError(f"{found[2]!r} is no unit of a {what}{did_you_mean(found[2], near or _plain(units))}")
    return number, found[2]


def _plain(units: Mapping[str, float]) -> list[str]:
    """Few enough to be listed."""
    return list(units)[:8]


def _bandwidth(value: object) -> Bandwidth:
    units = {**_PER_CYCLE, **_PER_SECOND}
    return Bandwidth(_quantity(units, "bandwidth")(value), _split(value, units, "bandwidth")[1] in _PER_CYCLE)


parse_bits = _quantity(_BITS, "size")
"""Bits of a size such as "2 GiB"; ValueError where it is none."""

Hertz = Annotated[float, BeforeValidator(_quantity(FREQUENCY, "frequency"))]
Watts = Annotated[float, BeforeValidator(_quantity(POWER, "power", zero=True))]
Seconds = Annotated[float, BeforeValidator(_quantity(TIME, "time", zero=True))]
Joules = Annotated[float, BeforeValidator(_quantity(ENERGY, "energy", zero=True))]
JoulesPerBit = Annotated[float, BeforeValidator(_quantity(ENERGY_PER_BIT, "energy per data", zero=True))]
Bits = Annotated[float, BeforeValidator(parse_bits)]
MacsPerSecond = Annotated[float, BeforeValidator(_quantity(RATE, "rate"))]
PerCycle = Annotated[Bandwidth, BeforeValidator(_bandwidth)]
