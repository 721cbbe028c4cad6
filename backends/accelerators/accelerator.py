"""What every class of accelerator shares: its description, what it refuses, and how cycles and energy add up."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import numpy as np
from pydantic import ConfigDict, Field, field_validator

from backends.accelerators.energy import Technology
from backends.accelerators.memory import Memory, MemorySection, Traffic, memories
from backends.accelerators.quantities import Hertz, Joules, Watts
from backends.accelerators.workloads import FloatArray, IntArray, Workloads
from search_spaces.errors import InputError
from search_spaces.number_formats import SCHEMES
from search_spaces.sections import Section

COMPUTE = "compute"
"""Beside the memory levels, in energies and as what limits a layer."""
STATIC = "static"
UNIFORM = ("symmetric", "asymmetric", "binary", "ternary", "dorefa")
"""Schemes whose numbers are multiples of a step, which integer arithmetic computes with."""


class Description(Section):
    """What a YAML file says of an accelerator; each class adds its own keys.

    Attributes:
        class_: the class of hardware, one of `catalogue.CLASSES` or "package.module:attribute".
        title: for people, in a few words.
        source: where the figures are from.
        checked: against what the model was checked, and how far off it was found.
        clock: of the arithmetic.
        technology: energies of operations and accesses: one that is shipped in `configs/technologies`, or what such a
            file holds; in a file also the path of one.
        static_power: drawn all the time, leakage and clock tree.
        mac_energy: of one multiply-accumulate of 8 bits, where it is known better than the technology says; it grows
            with the product of the bits.
        weight_bits, activation_bits: that the hardware computes with; others are widened to the next of them.
        unquantised_bits: that layers have of which a policy says nothing; without it they are refused.
        schemes: number formats that it can compute with, see `search_spaces.number_formats`.
        weight_schemes: those of weights, where they are others.
        accumulator_bits: of partial sums.
        activation_density: share of the values between layers that are not zero, where it is not measured.
        batch: images in a pass; latencies and energies are of one image.
        memories: levels, by the names that the class asks for.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, populate_by_name=True)

    class_: str = Field(alias="class")
    title: str = Field(min_length=1)
    source: str = Field(min_length=1)
    checked: str = "not checked against anything outside"
    clock: Hertz
    technology: str | Technology = "horowitz_45nm"
    static_power: Watts = 0.0
    mac_energy: Joules | None = None
    weight_bits: list[int] = Field(min_length=1)
    activation_bits: list[int] = Field(min_length=1)
    unquantised_bits: int | None = Field(default=None, ge=1, le=32)
    schemes: list[str] = Field(default_factory=lambda: list(UNIFORM), min_length=1)
    weight_schemes: list[str] | None = Field(default=None, min_length=1)
    accumulator_bits: int = Field(default=32, ge=1, le=64)
    activation_density: float = Field(default=1.0, gt=0, le=1)
    batch: int = Field(default=1, ge=1, le=65536)
    memories: dict[str, MemorySection]

    @field_validator("weight_bits", "activation_bits")
    @classmethod
    def _range(cls, bits: list[int]) -> list[int]:
        if any(not 1 <= each <= 32 for each in bits) or sorted(set(bits)) != bits:
            raise ValueError(f"bits are whole numbers from 1 to 32, rising, got {bits}")
        return bits

    @field_validator("schemes", "weight_schemes")
    @classmethod
    def _known(cls, schemes: list[str] | None) -> list[str] | None:
        for scheme in schemes or ():
            if scheme not in SCHEMES:
                raise ValueError(f"a scheme is one of {', '.join(SCHEMES)}, got {scheme!r}")
        return schemes


@dataclass(frozen=True)
class Usage:
    """What layers take, arrays [N], of a pass of the whole batch.

    Attributes:
        cycles: until a layer is done.
        compute_cycles: that the arithmetic alone takes.
        memory_cycles: by level, that its traffic alone takes.
        traffic: by level.
        energy_j: by level, of the arithmetic ("compute"), and of time passing ("static").
        utilisation: share of the arithmetic that does work in the cycles taken, in [0, 1].
        peak_macs_per_cycle: of the whole array at each layer's bits.
    """

    cycles: FloatArray
    compute_cycles: FloatArray
    memory_cycles: Mapping[str, FloatArray]
    traffic: Mapping[str, Traffic]
    energy_j: Mapping[str, FloatArray]
    utilisation: FloatArray
    peak_macs_per_cycle: FloatArray

    @property
    def total_energy_j(self) -> FloatArray:
        """Joules."""
        return np.asarray(np.sum(list(self.energy_j.values()), axis=0))

    def limits(self) -> list[str]:
        """What limits each layer: "compute", or a memory level; of equal ones the first."""
        names = (COMPUTE, *self.memory_cycles)
        columns = np.stack([self.compute_cycles, *self.memory_cycles.values()])
        return [names[index] for index in np.argmax(columns, axis=0)]


AnyDescription = TypeVar("AnyDescription", bound=Description)


class Accelerator(ABC, Generic[AnyDescription]):
    """A class of accelerator.

    A subclass says what its description holds (`Sections`, a subclass of `Description`), which memory levels it needs,
    what it cannot run, and what layers take. `run` must not cost more where bits, channels, density or rank fall, but
    for rounding to its units; the conformance kit (`automl.testing.accelerators`) tries that.

    Args:
        description: of the hardware.
        technology: energies of its operations and accesses.

    Raises:
        InputError: the description lacks a level, or contradicts itself.
    """

    Sections: ClassVar[type[Description]] = Description
    levels: ClassVar[tuple[str, ...]] = ("dram",)
    """Memory levels that a description must have."""
    optional_levels: ClassVar[tuple[str, ...]] = ()
    elements: ClassVar[tuple[str, ...]] = ()
    """Keys of the description ("lanes", or in a section "array.rows") that count processing elements, or say how fast
    they are: more of them never slow a layer, but for `fill_cycles`."""

    def __init__(self, description: AnyDescription, technology: Technology) -> None:
        self.description = description
        self.technology = technology
        known = (*self.levels, *self.optional_levels)
        for level in self.levels:
            if level not in description.memories:
                raise InputError(
                    f"a {description.class_} accelerator needs the memory level {level!r}; add it to memories"
                )
        for level, section in description.memories.items():
            if level not in known:
                raise InputError(
                    f"a {description.class_} accelerator has no memory level {level!r}; it has {', '.join(known)}"
                )
            if (section.size is None) != (level == "dram"):
                rule = "has no size, it holds everything" if level == "dram" else "needs a size"
                raise InputError(f"the memory level {level!r} {rule}")
        self.memories: Mapping[str, Memory] = memories(description.memories, description.clock, technology)

    def fitted(self, works: Workloads) -> Workloads:
        """With the bits that the hardware computes with: the next that it has. Call `refusals` before."""
        return works.replace(
            weight_bits=_next(works.weight_bits, self.description.weight_bits),
            activation_bits=_next(works.activation_bits, self.description.activation_bits),
        )

    def refusals(self, works: Workloads) -> list[str | None]:
        """Why each layer cannot be run, None where it can."""
        found: list[str | None] = []
        weights, activations = self.description.weight_bits[-1], self.description.activation_bits[-1]
        for weight, activation in zip(works.weight_bits.tolist(), works.activation_bits.tolist(), strict=True):
            if weight > weights:
                found.append(f"weights of {weight} bits; the hardware has at most {weights}")
            elif activation > activations:
                found.append(f"activations of {activation} bits; the hardware has at most {activations}")
            else:
                found.append(None)
        return found

    @abstractmethod
    def run(self, works: Workloads) -> Usage:
        """What the layers take, bits fitted already.

        Args:
            works: that `refusals` has no word against.
        """

    def fill_cycles(self, works: Workloads) -> FloatArray:
        """Cycles in which an array fills and drains, part of those of `run`; they grow with the array."""
        return np.zeros(len(works))

    def used(
        self,
        works: Workloads,
        compute_cycles: FloatArray,
        traffic: Mapping[str, Traffic],
        *,
        peak_macs_per_cycle: float | FloatArray,
        effective_macs: FloatArray | None = None,
        overhead_cycles: float | FloatArray = 0.0,
        compute_j: FloatArray | None = None,
        memory_cycles: Mapping[str, FloatArray] | None = None,
    ) -> Usage:
        """Adds up: all levels work at once, the slowest sets the pace; energy is of operations, traffic and time.

        Args:
            works: the layers.
            compute_cycles: of the arithmetic.
            traffic: by level.
            peak_macs_per_cycle: of the whole array at the layers' bits.
            effective_macs: that are carried out and cost energy; by default all.
            overhead_cycles: that nothing hides, such as filling an array or launching a kernel.
            compute_j: energy of the arithmetic, where it is not MACs times the energy of one.
            memory_cycles: by level, where they are not those of its traffic.
        """
        done = np.asarray(works.macs, dtype=np.float64) if effective_macs is None else effective_macs
        level_cycles = {name: self.memories[name].cycles(moved) for name, moved in traffic.items()}
        level_cycles |= memory_cycles or {}
        cycles = np.max([compute_cycles, *level_cycles.values()], axis=0) + overhead_cycles
        energy = {
            COMPUTE: done * self.mac_j(works.weight_bits, works.activation_bits) if compute_j is None else compute_j
        }
        energy |= {name: self.memories[name].energy_j(moved) for name, moved in traffic.items()}
        energy[STATIC] = self.description.static_power * cycles / self.description.clock
        peak = np.broadcast_to(np.asarray(peak_macs_per_cycle, dtype=np.float64), cycles.shape)
        share = np.minimum(1.0, done / np.maximum(cycles * peak, 1e-300))
        return Usage(cycles, compute_cycles, level_cycles, traffic, energy, share, peak)

    def mac_j(self, weight_bits: IntArray, activation_bits: IntArray) -> FloatArray:
        """Joules of one multiply-accumulate of these bits."""
        if self.description.mac_energy is None:
            return self.technology.mac_j(weight_bits, activation_bits)
        return np.asarray(self.description.mac_energy * weight_bits * activation_bits / 64.0)


def _next(bits: IntArray, supported: Sequence[int]) -> IntArray:
    """The least supported number of bits that is enough; the most where none is."""
    steps = np.asarray(supported, dtype=np.int64)
    return steps[np.minimum(np.searchsorted(steps, bits), len(steps) - 1)]
