"""What each layer takes on an accelerator, per image, for a table or a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from backends.accelerators.backend import AcceleratorBackend
from search_spaces.graph import ModelGraph

OFF_CHIP = "dram"


@dataclass(frozen=True)
class LayerUsage:
    """One layer, or product of attention, of one image.

    Attributes:
        name: of the layer.
        macs: multiply-accumulates, those with zeros included.
        weight_bits, activation_bits: that the hardware computes with.
        latency_s: seconds until it is done.
        energy_j: joules.
        utilisation: share of the arithmetic that works, in [0, 1].
        limit: "compute", or the memory level that is slowest.
        peak_macs_per_s: of the whole array at these bits.
        bytes: that move at each memory level.
    """

    name: str
    macs: float
    weight_bits: int
    activation_bits: int
    latency_s: float
    energy_j: float
    utilisation: float
    limit: str
    peak_macs_per_s: float
    bytes: Mapping[str, float]


@dataclass(frozen=True)
class AcceleratorUsage:
    """A network on an accelerator.

    Attributes:
        title, source, checked: of its description.
        bandwidth: bytes a second that it moves off the chip; None where that limits nothing.
        layers: in execution order.
    """

    title: str
    source: str
    checked: str
    bandwidth: float | None
    layers: Sequence[LayerUsage]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "AcceleratorUsage":
        """What `to_json` gave.

        Raises:
            KeyError, TypeError: it is something else.
        """
        return cls(**{**values, "layers": [LayerUsage(**layer) for layer in values["layers"]]})


def usage_of(backend: AcceleratorBackend, graph: ModelGraph) -> AcceleratorUsage:
    """What every layer of a network takes.

    Raises:
        InputError: the accelerator cannot run one of them.
    """
    names, works, usage = backend.usage(graph)
    description, memories = backend.accelerator.description, backend.accelerator.memories
    batch, clock = description.batch, description.clock
    levels = {name: (traffic.bits / 8 / batch).tolist() for name, traffic in usage.traffic.items()}
    columns = zip(
        names,
        (works.macs / batch).tolist(),
        works.weight_bits.tolist(),
        works.activation_bits.tolist(),
        (usage.cycles / clock / batch).tolist(),
        (usage.total_energy_j / batch).tolist(),
        usage.utilisation.tolist(),
        usage.limits(),
        (usage.peak_macs_per_cycle * clock).tolist(),
        ({level: column[index] for level, column in levels.items()} for index in range(len(names))),
        strict=True,
    )
    layers = [LayerUsage(*figures) for figures in columns]
    off_chip = memories.get(OFF_CHIP)
    bits = None if off_chip is None else min(off_chip.bandwidth, off_chip.read_bandwidth + off_chip.write_bandwidth)
    bandwidth = None if bits is None or bits == float("inf") else bits * clock / 8
    return AcceleratorUsage(description.title, description.source, description.checked, bandwidth, layers)
