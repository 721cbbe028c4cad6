"""Memory levels: how large, how fast, and what an access costs."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import model_validator

from backends.accelerators.energy import Technology, access_j_per_bit
from backends.accelerators.quantities import Bandwidth, Bits, Joules, JoulesPerBit, PerCycle
from backends.accelerators.workloads import FloatArray
from search_spaces.sections import Section


class MemorySection(Section):
    """A level as a description has it.

    Attributes:
        size: None for memory outside of the chip, which holds everything.
        width: of one access, one of which is made a cycle where no bandwidth is given.
        bandwidth: of reads and writes together; where neither it nor a width is given, it limits nothing.
        read_bandwidth, write_bandwidth: of each, instead.
        energy: of a bit read or written; by default the technology's for such a size.
        access_energy: of one access of that width, instead.
        read_energy, write_energy: of a bit read and of a bit written, instead.
        double_buffered: whether one half is filled while the other is used.
    """

    size: Bits | None = None
    width: Bits | None = None
    bandwidth: PerCycle | None = None
    read_bandwidth: PerCycle | None = None
    write_bandwidth: PerCycle | None = None
    energy: JoulesPerBit | None = None
    access_energy: Joules | None = None
    read_energy: JoulesPerBit | None = None
    write_energy: JoulesPerBit | None = None
    double_buffered: bool = False

    @model_validator(mode="after")
    def _one_bandwidth(self) -> "MemorySection":
        if self.bandwidth is not None and (self.read_bandwidth or self.write_bandwidth):
            raise ValueError("a bandwidth is of reads and writes together, or there is one for each; give either")
        return self

    @model_validator(mode="after")
    def _one_energy(self) -> "MemorySection":
        if self.access_energy is not None and (self.energy is not None or self.width is None):
            raise ValueError("an access_energy is that of one access of the level's width: give a width, and no energy")
        return self


@dataclass(frozen=True)
class Traffic:
    """Bits that move at a level, arrays [N]."""

    read_bits: FloatArray
    written_bits: FloatArray

    @property
    def bits(self) -> FloatArray:
        """Of both directions."""
        return self.read_bits + self.written_bits


@dataclass(frozen=True)
class Memory:
    """A level of memory at a clock, in a technology.

    Attributes:
        name: of the level.
        size_bits: None where it holds everything.
        bandwidth: bits a cycle of reads and writes together; infinite where it limits nothing, or each has its own.
        read_bandwidth, write_bandwidth: bits a cycle of each.
        read_j, write_j: joules a bit.
        usable_bits: that a tile may take: half of a double buffered one.
    """

    name: str
    size_bits: float | None
    bandwidth: float
    read_bandwidth: float
    write_bandwidth: float
    read_j: float
    write_j: float
    usable_bits: float

    @classmethod
    def of(cls, name: str, section: MemorySection, clock_hz: float, technology: Technology) -> "Memory":
        """From its description."""
        default = access_j_per_bit(technology, section.size) if section.energy is None else section.energy
        if section.access_energy is not None and section.width is not None:
            default = section.access_energy / section.width
        size = np.inf if section.size is None else section.size
        return cls(
            name=name,
            size_bits=section.size,
            bandwidth=_bandwidth(section, clock_hz),
            read_bandwidth=_per_cycle(section.read_bandwidth, clock_hz),
            write_bandwidth=_per_cycle(section.write_bandwidth, clock_hz),
            read_j=default if section.read_energy is None else section.read_energy,
            write_j=default if section.write_energy is None else section.write_energy,
            usable_bits=size / 2 if section.double_buffered else size,
        )

    def cycles(self, traffic: Traffic) -> FloatArray:
        """Cycles that the traffic takes, were there nothing else."""
        alone = np.maximum(traffic.read_bits / self.read_bandwidth, traffic.written_bits / self.write_bandwidth)
        return np.maximum(traffic.bits / self.bandwidth, alone)

    def energy_j(self, traffic: Traffic) -> FloatArray:
        """Joules of the traffic."""
        return traffic.read_bits * self.read_j + traffic.written_bits * self.write_j


def memories(sections: Mapping[str, MemorySection], clock_hz: float, technology: Technology) -> Mapping[str, Memory]:
    """The levels of a description, by name."""
    return {name: Memory.of(name, section, clock_hz, technology) for name, section in sections.items()}


def _bandwidth(section: MemorySection, clock_hz: float) -> float:
    """Of reads and writes together: an access a cycle where nothing else is said."""
    given = section.bandwidth or section.read_bandwidth or section.write_bandwidth
    if given is None and section.width is not None:
        return section.width
    return _per_cycle(section.bandwidth, clock_hz)


def _per_cycle(bandwidth: Bandwidth | None, clock_hz: float) -> float:
    return np.inf if bandwidth is None else bandwidth.bits_per_cycle(clock_hz)
