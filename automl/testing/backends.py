"""The conformance kits of backends: one subclass, and a new backend is tested.

class TestMine(BackendConformance):
    def make(self):
        return MyBackend()

`BackendConformance` is for those that price a graph, `MeasuringConformance` for those that time a module.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import nn

from automl.testing.checks import global_state, refused, require
from automl.testing.problems import cifar_resnet, conv_chain, mobilenet_v1
from backends.base import HardwareBackend
from backends.measuring import TOLERANCE, Measurement
from search_spaces.graph import ModelGraph
from search_spaces.operators import Operator


class BackendConformance(ABC):
    """What every `HardwareBackend` promises.

    Attributes:
        measured: whether its latency was read off a clock.
        tolerance: share by which a cost may rise where a layer shrinks; above 0 for what is measured.
        macs_per_s: least and most multiply-accumulates a second that are believed of the device. Milliseconds taken
            for seconds fall out of it where it spans less than three powers of ten.
    """

    measured = False
    tolerance = 0.0
    macs_per_s = (1e6, 1e15)

    @abstractmethod
    def make(self) -> HardwareBackend:
        """A new backend; two that are made alike answer alike."""

    def graphs(self) -> Sequence[ModelGraph]:
        """Networks that it prices."""
        return [cifar_resnet(8), mobilenet_v1(size=32), conv_chain()]

    def shrinking(self) -> Iterable[Sequence[ModelGraph]]:
        """Networks, each the one before with some layer smaller; by default with fewer channels."""
        graph = self.graphs()[0]
        widths = [group.width for group in graph.groups]
        yield [graph.with_kept([max(1, width * eighths // 8) for width in widths]) for eighths in range(8, 0, -1)]
        for index in range(min(2, len(widths))):
            alone = range(widths[index], 0, -max(1, widths[index] // 4))
            yield [graph.with_kept([*widths[:index], units, *widths[index + 1 :]]) for units in alone]

    def unsupported(self) -> Sequence[ModelGraph]:
        """Networks that it must refuse; none where it prices whatever there is."""
        return ()

    def bad_input(self) -> Iterable[Callable[[], object]]:
        """Ways to make or ask it wrongly, each of which is an `InputError`."""
        return ()

    def test_it_prices_what_it_supports_and_refuses_the_rest(self) -> None:
        """Reasons are told in one line each; an estimate despite them is an `InputError`, never a figure."""
        backend = self.make()
        require(bool(backend.name), "a backend has a name")
        for graph in self.graphs():
            require(backend.supports(graph) == (), f"refused: {backend.supports(graph)}")
            backend.estimate(graph)
        for graph in self.unsupported():
            reasons = backend.supports(graph)
            require(bool(reasons), "a network that it cannot price is not refused")
            require(all(reason and "\n" not in reason for reason in reasons), f"reasons are one line each: {reasons}")
            refused(lambda graph=graph: backend.estimate(graph))
            refused(lambda graph=graph: backend.estimate_many([*self.graphs(), graph]))

    def test_the_same_network_costs_the_same(self) -> None:
        """Asked again, by another instance, in another order, and for several networks at once."""
        backend, graphs = self.make(), self.graphs()
        singly = [backend.estimate(graph) for graph in graphs]
        require([backend.estimate(graph) for graph in graphs] == singly, "asked again, it answers otherwise")
        require(backend.estimate_many(graphs) == singly, "asked for several at once, it answers otherwise")
        other = self.make()
        backwards = [other.estimate(graph) for graph in reversed(graphs)]
        require(backwards[::-1] == singly, "another instance, asked in another order, answers otherwise")
        require(backend.estimate_many([]) == [], "asked for nothing, it answers something")

    def test_units(self) -> None:
        """Counts are the graph's, times are seconds, sizes bytes, and layers' shares do not exceed the whole."""
        backend = self.make()
        for graph in self.graphs():
            cost = backend.estimate(graph)
            require((cost.macs, cost.params) == (graph.macs, graph.params), "MACs or parameters are not the graph's")
            require(cost.weight_bytes == graph.weight_bytes, "bytes of weights are not the graph's")
            figures = [*cost.as_metrics().values(), *cost.by_layer.values()]
            require(all(math.isfinite(figure) and figure >= 0 for figure in figures), f"a cost is no number: {cost}")
            require(cost.by_layer.keys() <= _names(graph), "a share is of a layer that the network does not have")
            if cost.latency_s is not None:
                rate = graph.macs / cost.latency_s if cost.latency_s else math.inf
                least, most = self.macs_per_s
                require(least <= rate <= most, f"{cost.latency_s} s would be {rate:.3g} MACs a second: not seconds?")
                shares = sum(cost.by_layer.values())
                require(shares <= cost.latency_s * (1 + 1e-9), f"shares of {shares} s in {cost.latency_s} s")
            if cost.peak_activation_bytes is not None:
                require(cost.peak_activation_bytes > 0, "no activation is alive")

    def test_it_says_who_speaks_and_whether_it_was_measured(self) -> None:
        """What knows no latency has measured none."""
        backend = self.make()
        for graph in self.graphs():
            cost = backend.estimate(graph)
            require(cost.backend == backend.name, f"cost of {cost.backend!r} from backend {backend.name!r}")
            expected = self.measured and cost.latency_s is not None
            require(cost.measured == expected, f"measured={cost.measured} with a latency of {cost.latency_s}")

    def test_no_cost_rises_when_a_layer_shrinks(self) -> None:
        """Within `tolerance`, against every larger network before it."""
        backend = self.make()
        for chain in self.shrinking():
            least: dict[str, float] = {}
            for graph, cost in zip(chain, backend.estimate_many(chain), strict=True):
                for metric, value in cost.as_metrics().items():
                    limit = least.get(metric, math.inf) * (1 + self.tolerance)
                    require(value <= limit, f"{metric} rises from {least.get(metric)} to {value} at {graph.kept} units")
                    least[metric] = min(value, least.get(metric, math.inf))

    def test_bad_input_is_refused_in_one_line(self) -> None:
        """`InputError`, nothing else; so is the call that follows none of it."""
        for wrong in self.bad_input():
            refused(wrong)

    def test_nothing_else_is_touched(self) -> None:
        """The graph, the global generators and torch's number of threads."""
        backend = self.make()
        graphs, again = self.graphs(), self.graphs()
        before = global_state()
        backend.estimate_many(graphs)
        require(global_state() == before, "a global generator or the number of threads was changed")
        require(list(graphs) == list(again), "a graph was changed")


class Measuring(Protocol):
    """A backend that times a module."""

    name: str

    def supports(self, graph: ModelGraph) -> tuple[str, ...]:
        """Reasons why the network cannot be measured."""

    def measure(self, module: nn.Module, example_input: torch.Tensor) -> Measurement:
        """Times the network in evaluation mode."""


class MeasuringConformance(ABC):
    """What every backend with `measure` promises, checked on a small network.

    Attributes:
        threads: that the backend is made with.
        refuses_recurrent: whether recurrent networks are refused by name.
    """

    threads = 1
    refuses_recurrent = False

    @abstractmethod
    def make(self) -> Measuring:
        """A new backend."""

    def test_a_latency_is_seconds_of_one_call_and_was_checked(self) -> None:
        """The calls fit into the time it took; the output was compared with torch's."""
        backend, (module, example) = self.make(), _small_network()
        start = time.perf_counter()
        found = backend.measure(module, example)
        took = time.perf_counter() - start
        require(found.engine == backend.name, f"engine {found.engine!r} of backend {backend.name!r}")
        require(0 < found.p10_s <= found.latency_s <= found.p90_s, f"percentiles are out of order: {found}")
        # at least half of the samples took the median or longer
        require(found.runs >= 1, "nothing was run")
        require(found.latency_s * found.runs <= 2 * took, f"{found.runs} calls of {found.latency_s} s in {took} s")
        require(found.threads == self.threads, f"{found.threads} threads, asked for {self.threads}")
        require(found.max_error is not None and found.max_error <= TOLERANCE, f"error {found.max_error}")
        require(bool(found.details.get("cpu")) and len(found.details) > 1, "neither processor nor version is told")

    def test_the_module_stays_as_it_was(self) -> None:
        """Mode, weights and batch norm's statistics, and the process's own generators and threads."""
        module, example = _small_network()
        module.train()
        state = {name: value.clone() for name, value in module.state_dict().items()}
        before = global_state()
        self.make().measure(module, example)
        require(global_state() == before, "a global generator or the number of threads was changed")
        require(all(part.training for part in module.modules()), "the module's mode was changed")
        require(
            all(torch.equal(value, state[name]) for name, value in module.state_dict().items()), "its state was changed"
        )

    def test_a_module_that_cannot_be_exported_is_refused_in_one_line(self) -> None:
        """Whatever a user's module raises is an `InputError`."""
        _, example = _small_network()
        refused(lambda: self.make().measure(_Broken(), example))

    def test_recurrent_networks(self) -> None:
        """Refused by name where the engine computes them wrongly."""
        cell = Operator("cell", "lstm", ("x",), (4,), "float32")
        graph = ModelGraph.build([Operator("x", "input", (), (4,), "float32"), cell], (), (), (), (4,))
        reasons = self.make().supports(graph)
        require(bool(reasons) == self.refuses_recurrent, f"recurrent networks: {reasons}")
        require(all("cell" in reason for reason in reasons), f"a reason that does not name the operator: {reasons}")


class _Broken(nn.Module):
    """Fails in two lines."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("no network at all:\nnothing is computed")


def _small_network() -> tuple[nn.Module, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 64, 4)
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.empty_like(parameter).normal_(std=0.1, generator=generator))
    return module.eval(), torch.randn(1, 3, 8, 8, generator=generator)


def _names(graph: ModelGraph) -> set[str]:
    return {layer.name for layer in graph.layers} | {operator.name for operator in graph.full_operators}
