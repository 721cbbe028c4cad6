"""Every accelerator that is shipped under the conformance kits, and the kit on accelerators with a fault each."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import pytest

from automl.testing.accelerators import AcceleratorConformance
from automl.testing.backends import BackendConformance
from automl.testing.problems import GraphBuilder, cifar_resnet, conv_chain, mobilenet_v1
from backends.accelerators.accelerator import Accelerator, Description, Usage
from backends.accelerators.backend import AcceleratorBackend
from backends.accelerators.catalogue import CLASSES, load, names
from backends.accelerators.memory import Traffic
from backends.accelerators.workloads import FloatArray, Workloads
from search_spaces.graph import ModelGraph
from search_spaces.policy import CompressionPolicy, LayerPolicy


class TestShipped(AcceleratorConformance):
    examples = 5  # many descriptions; tests of the classes try more, and so does the next

    @pytest.fixture(autouse=True, params=names())
    def _named(self, request: pytest.FixtureRequest) -> None:
        self.name = request.param

    def make(self) -> Accelerator[Any]:
        return load(self.name)


@pytest.mark.slow
class TestShippedAtLength(TestShipped):
    examples = 300


class TestShippedAsBackends(BackendConformance):
    @pytest.fixture(autouse=True, params=names())
    def _named(self, request: pytest.FixtureRequest) -> None:
        self.name = request.param

    def make(self) -> AcceleratorBackend:
        return AcceleratorBackend(self.name, load(self.name))

    def graphs(self) -> Sequence[ModelGraph]:
        return runnable(self.name)

    def unsupported(self) -> Sequence[ModelGraph]:
        """More bits than the hardware has: numbers of which no policy says anything."""
        return [] if load(self.name).description.unquantised_bits else [conv_chain()]


@cache
def runnable(name: str) -> list[ModelGraph]:
    """Networks that a shipped accelerator runs."""
    backend = AcceleratorBackend(name, load(name))
    found = [quantised(graph, backend.accelerator) for graph in networks()]
    kept = [graph for graph in found if not backend.supports(graph)]
    assert kept, [backend.supports(graph)[:1] for graph in found]
    return kept


@cache
def networks() -> list[ModelGraph]:
    return [cifar_resnet(8), mobilenet_v1(size=32), conv_chain(), linear()]


def quantised(graph: ModelGraph, accelerator: Accelerator[Any]) -> ModelGraph:
    """To the most bits that both the hardware and a policy know."""
    description = accelerator.description
    if description.unquantised_bits:
        return graph
    weights, activations = (min(16, bits[-1]) for bits in (description.weight_bits, description.activation_bits))
    scheme = {"weight_scheme": "ternary"} if "symmetric" not in description.schemes and weights == 2 else {}
    layer = LayerPolicy(weight_bits=weights, activation_bits=activations, **scheme)
    return graph.apply(CompressionPolicy({spec.name: layer for spec in graph.layers}))


def linear() -> ModelGraph:
    builder = GraphBuilder(channels=64, size=1)
    builder.linear("first", 300)
    builder.linear("second", 10)
    return builder.build()


def test_every_class_that_there_is_has_a_description() -> None:
    kinds = {load(name).description.class_ for name in names()}
    built = {kind for kind, place in CLASSES.items() if find_spec(f"backends.accelerators.{place.split(':')[0]}")}
    assert kinds == built


class Faulty(Accelerator[Description]):
    """Does all of a layer's MACs, 16 a cycle, and moves everything once; with a fault."""

    elements: ClassVar[tuple[str, ...]] = ("accumulator_bits",)
    optional_levels: ClassVar[tuple[str, ...]] = ("buffer",)
    fault = ""

    def refusals(self, works: Workloads) -> list[str | None]:
        if self.fault == "refuses nothing":
            return [None] * len(works)
        found = super().refusals(works)
        if self.fault == "refuses in two lines":
            return [reason and f"{reason}\n" for reason in found]
        if self.fault == "refuses with luck":
            return [reason or (None if index else "the first") for index, reason in enumerate(found)]
        return found

    def run(self, works: Workloads) -> Usage:
        traffic = Traffic(
            np.asarray(works.weights * works.weight_bits + works.inputs * works.activation_bits, dtype=np.float64),
            np.asarray(works.outputs * works.activation_bits, dtype=np.float64),
        )
        usage = self.used(works, works.macs * works.weight_density / 16.0, {"dram": traffic}, peak_macs_per_cycle=16.0)
        change = FAULTS.get(self.fault)
        return usage if change is None else change(self, works, usage)


def _cycles(
    factor: Callable[[Accelerator[Any], Workloads], Any],
) -> Callable[[Accelerator[Any], Workloads, Usage], Usage]:
    """A fault: cycles, energies with them, times a factor."""

    def change(accelerator: Accelerator[Any], works: Workloads, usage: Usage) -> Usage:
        cycles: FloatArray = usage.cycles * factor(accelerator, works)
        static = accelerator.description.static_power * cycles / accelerator.description.clock
        return replace(usage, cycles=cycles, energy_j={**usage.energy_j, "static": static})

    return change


def _touches(accelerator: Accelerator[Any], works: Workloads, usage: Usage) -> Usage:
    works.batch[:] = 1
    return usage


FAULTS: dict[str, Callable[[Any, Workloads, Usage], Usage]] = {
    "takes less than its parts": _cycles(lambda _, works: 0.5),
    "loves wide layers": _cycles(lambda _, works: 1 + 1000.0 / works.out_channels),
    "loves high ranks": _cycles(lambda _, works: 1 + 1000.0 / (works.out_channels * works.in_channels)),
    "loves many bits": _cycles(lambda _, works: 1 + 1.0 / works.weight_bits),
    "hates zeros": _cycles(lambda _, works: 3 - works.activation_density),
    "hates bandwidth": _cycles(lambda accelerator, _: 1 + accelerator.memories["dram"].bandwidth),
    "hates buffers": _cycles(lambda accelerator, _: 1 + accelerator.memories["buffer"].size_bits),
    "hates elements": _cycles(lambda accelerator, _: float(accelerator.description.accumulator_bits)),
    "looks at others": _cycles(lambda _, works: float(len(works))),
    "utilisation": lambda _, works, usage: replace(usage, utilisation=usage.utilisation + 1),
    "lost energy": lambda _, works, usage: replace(usage, energy_j={"compute": usage.energy_j["compute"]}),
    "NaN": lambda _, works, usage: replace(usage, compute_cycles=usage.compute_cycles * np.nan),
    "touches the layers": _touches,
}
DOCUMENT = {
    "class": "test",
    "title": "16 multipliers",
    "source": "this test",
    "clock": "1 GHz",
    "static_power": "1 W",
    "weight_bits": [2, 4, 8],
    "activation_bits": [8],
    "accumulator_bits": 16,
}


class Kit(AcceleratorConformance):
    examples = 200
    shrinks = False  # that a fault is found is enough
    fault = ""

    def make(self) -> Accelerator[Any]:
        kind = type("Faulty", (Faulty,), {"fault": self.fault})
        memories = {"dram": {"bandwidth": "64 bit/cycle"}, "buffer": {"size": "4 KiB"}}
        description = Description.model_validate({**DOCUMENT, "memories": memories})
        technology = load("cpu_avx512").technology
        return kind(description, technology)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("refuses nothing", "test_refusals_are_one_line_each"),
        ("refuses in two lines", "test_refusals_are_one_line_each"),
        ("refuses with luck", "test_a_batch_of_layers_is_each_layer_alone"),
        ("takes less than its parts", "test_figures_are_sound"),
        ("loves wide layers", "test_no_cost_rises_when_a_layer_shrinks"),
        ("loves high ranks", "test_no_cost_rises_when_a_rank_falls"),
        ("loves many bits", "test_no_cost_rises_when_a_layer_shrinks"),
        ("hates zeros", "test_no_cost_rises_when_a_layer_shrinks"),
        ("hates bandwidth", "test_more_bandwidth_slows_nothing"),
        ("hates buffers", "test_a_larger_buffer_slows_nothing"),
        ("hates elements", "test_more_processing_elements_slow_nothing"),
        ("looks at others", "test_a_batch_of_layers_is_each_layer_alone"),
        ("utilisation", "test_figures_are_sound"),
        ("lost energy", "test_figures_are_sound"),
        ("NaN", "test_figures_are_sound"),
        ("touches the layers", "test_nothing_else_is_touched"),
    ],
)
def test_the_kit_finds_out(fault: str, check: str) -> None:
    kit = Kit()
    kit.fault = fault
    with pytest.raises(AssertionError):
        getattr(kit, check)()


class TestHonest(Kit):
    """What is not at fault passes."""

    examples = 15
    shrinks = True
