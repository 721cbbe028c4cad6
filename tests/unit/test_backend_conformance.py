"""The conformance kit of backends, on backends that pass it and on backends that must not."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from automl.testing.backends import BackendConformance
from automl.testing.problems import conv_chain
from backends.base import HardwareBackend, HardwareCost
from backends.counting import CountingBackend
from backends.table_file import TableFileBackend
from search_spaces.graph import ModelGraph
from search_spaces.policy import CompressionPolicy, LayerPolicy

CHAIN = conv_chain((8, 16))


def uniform(bits: int) -> ModelGraph:
    layer = LayerPolicy(weight_bits=bits, activation_bits=bits)
    return CHAIN.apply(CompressionPolicy({spec.name: layer for spec in CHAIN.layers}))


class TestCounting(BackendConformance):
    def make(self) -> HardwareBackend:
        return CountingBackend()


class TestCountingInBits(BackendConformance):
    def make(self) -> HardwareBackend:
        return CountingBackend()

    def shrinking(self) -> Iterable[Sequence[ModelGraph]]:
        return [[uniform(bits) for bits in range(16, 0, -1)]]


class TestTableFile(BackendConformance):
    @pytest.fixture(autouse=True)
    def _file(self, tmp_path: Path) -> None:
        bits = np.arange(1, 9)
        cost = bits[:, None] * bits[None, :]
        self.path = tmp_path / "table.npy"
        np.save(self.path, np.stack([layer.macs * cost for layer in CHAIN.layers]))

    def make(self) -> HardwareBackend:
        return TableFileBackend(self.path, unit="cycles", frequency_hz=1e9)

    def graphs(self) -> Sequence[ModelGraph]:
        return [uniform(8), uniform(3)]

    def shrinking(self) -> Iterable[Sequence[ModelGraph]]:
        return [[uniform(bits) for bits in range(8, 0, -1)]]

    def unsupported(self) -> Sequence[ModelGraph]:
        return [CHAIN, uniform(9), uniform(8).with_kept((8, 4)), conv_chain((8, 16, 16))]

    def bad_input(self) -> Iterable[Callable[[], object]]:
        yield lambda: TableFileBackend(self.path.with_name("gone.npy"))
        yield lambda: TableFileBackend(self.path, batch=0)


class TestTableFileInCycles(TestTableFile):
    def make(self) -> HardwareBackend:
        return TableFileBackend(self.path, unit="cycles", measured=True)


class Lying(CountingBackend):
    """A second per billion MACs, with one lie."""

    def __init__(self, lie: str = "") -> None:
        self.lie = lie
        self.asked = 0

    def supports(self, graph: ModelGraph) -> tuple[str, ...]:
        return ("no residual sums",) if len(graph.groups) > 3 else ()

    def estimate(self, graph: ModelGraph) -> HardwareCost:
        if self.lie != "prices what it refuses":
            self.require(graph)
        self.asked += 1
        counted = super().estimate(graph)
        latency_s = graph.macs * 1e-9
        cost = replace(counted, latency_s=latency_s, by_layer={n: m * 1e-9 for n, m in counted.by_layer.items()})
        lies = {
            "milliseconds": {"latency_s": 1e3 * latency_s},
            "NaN": {"latency_s": float("nan")},
            "shares": {"latency_s": latency_s / 2},
            "shares of others": {"by_layer": {"nobody": 0.0}},
            "rises": {"latency_s": 1.0 / latency_s},
            "drifts": {"latency_s": latency_s * (1 + 1e-3 * self.asked)},
            "measured": {"measured": True},
            "somebody else": {"backend": "somebody"},
            "bits for bytes": {"weight_bytes": 8 * cost.weight_bytes},
        }
        return replace(cost, **lies.get(self.lie, {}))  # type: ignore[arg-type]


class Kit(BackendConformance):
    macs_per_s = (1e8, 1e10)

    def __init__(self, lie: str) -> None:
        self.lie = lie

    def make(self) -> HardwareBackend:
        return Lying(self.lie)

    def graphs(self) -> Sequence[ModelGraph]:
        return [conv_chain(), conv_chain((8, 8))]

    def unsupported(self) -> Sequence[ModelGraph]:
        return [conv_chain((8, 8, 8, 8))]

    def bad_input(self) -> Iterable[Callable[[], object]]:
        return [lambda: None] if self.lie == "accepts anything" else []


CHECKS = [name for name in dir(BackendConformance) if name.startswith("test_")]


def failing(lie: str) -> list[str]:
    failed = []
    for name in CHECKS:
        try:
            getattr(Kit(lie), name)()
        except AssertionError:
            failed.append(name)
    return failed


@pytest.mark.parametrize(
    ("lie", "check"),
    [
        ("prices what it refuses", "test_it_prices_what_it_supports_and_refuses_the_rest"),
        ("milliseconds", "test_units"),
        ("NaN", "test_units"),
        ("shares", "test_units"),
        ("shares of others", "test_units"),
        ("bits for bytes", "test_units"),
        ("rises", "test_no_cost_rises_when_a_layer_shrinks"),
        ("drifts", "test_the_same_network_costs_the_same"),
        ("measured", "test_it_says_who_speaks_and_whether_it_was_measured"),
        ("somebody else", "test_it_says_who_speaks_and_whether_it_was_measured"),
        ("accepts anything", "test_bad_input_is_refused_in_one_line"),
    ],
)
def test_the_kit_finds_out(lie: str, check: str) -> None:
    assert check in failing(lie)


def test_the_kit_believes_an_honest_backend() -> None:
    assert failing("") == []
