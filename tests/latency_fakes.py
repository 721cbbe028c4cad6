"""A latency table of made-up operators: real table, real prices, no compiler and no clock."""

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.base import HardwareBackend, HardwareCost
from backends.latency_entries import DeviceKey
from backends.latency_table import LatencyTable
from backends.operator_prices import OperatorPrices
from backends.recipes import OperatorFailure, Recipe, Timing
from backends.table_backend import Latencies
from search_spaces.graph import ModelGraph

DEVICE = DeviceKey("fake", "cpu", "target", 1, "1.0", "rules")


@dataclass(frozen=True)
class LayerRecipe:
    """A layer by its channels."""

    recipe: str
    work: float
    traffic: float
    kind: str = "layer"


class ArithmeticTimer:
    """A clock that goes by MACs, up to 2 % off. Operators whose recipe holds `refused` fail."""

    def __init__(self, refused: str = "nothing") -> None:
        self.measured: Counter[str] = Counter()
        self.refused = refused

    def measure(self, recipe: Recipe) -> Timing:
        self.measured[recipe.recipe] += 1
        if self.refused in recipe.recipe:
            raise OperatorFailure("it crashed")
        bump = zlib.crc32(recipe.recipe.encode()) / 2**32
        seconds = (1e-6 + 1e-10 * recipe.work) * (1.0 + 0.02 * bump)
        return Timing(seconds, seconds, seconds, 10, 0.0, "code")

    def close(self) -> None:
        pass


class LayerBackend(HardwareBackend):
    """Prices a network as the sum of its layers; the interface of `backends.table_backend.TableBackend`."""

    name = "layers"

    def __init__(self, graph: ModelGraph, prices: Latencies) -> None:
        self._graph = graph
        self._prices = prices

    def recipes(
        self, kept: Sequence[int], formats: object = None, resolution: Any = None, cuts: object = None
    ) -> list[LayerRecipe]:
        return [
            LayerRecipe(
                f"{layer.kind}({layer.in_channels}, {layer.out_channels}, {layer.kernel}, {layer.positions})",
                float(layer.macs),
                float(layer.in_channels + layer.out_channels),
            )
            for layer in self._graph.at(resolution).with_kept(kept).layers
        ]

    def price(self, kept: Sequence[int], formats: object = None, resolution: Any = None, cuts: object = None) -> float:
        recipes = self.recipes(kept, formats, resolution)
        seconds = self._prices.latencies(recipes)
        return sum(seconds[recipe.recipe] for recipe in recipes)

    def estimate(self, graph: ModelGraph) -> HardwareCost:
        recipes = self.recipes(graph.kept)
        seconds = self._prices.latencies(recipes)
        by_layer = {layer.name: seconds[recipe.recipe] for layer, recipe in zip(graph.layers, recipes, strict=True)}
        total = sum(by_layer.values())
        return HardwareCost(graph.macs, graph.params, graph.weight_bytes, total, by_layer=by_layer, measured=True)


@contextmanager
def fake_prices(path: Path, timer: ArithmeticTimer | None = None) -> Iterator[OperatorPrices]:
    """The table in that file, on the arithmetic clock."""
    with LatencyTable(path, DEVICE) as table:
        yield OperatorPrices(table, timer or ArithmeticTimer())
