"""Networks priced by a table of measured operators: what a policy's network takes on a device, in microseconds of
arithmetic.

The operators of a network under a policy follow from its graph alone. Each is measured once on the device, and the
network costs the sum.
"""

import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from backends.base import HardwareBackend, HardwareCost
from backends.counting import CountingBackend
from backends.cuts import NONE, Cuts, without_blocks
from backends.integers import Formats, formats_of
from backends.latency_entries import DeviceKey
from backends.latency_table import LatencyTable, default_table_path
from backends.measuring import cpu_name
from backends.operator_prices import OperatorPrices
from backends.operator_timing import OperatorTimer
from backends.recipes import Recipe
from backends.remote.device import RemoteDevice
from backends.remote.fleet import Fleet
from search_spaces.errors import InputError, did_you_mean
from search_spaces.graph import ModelGraph
from search_spaces.operators import Block
from search_spaces.policy import LayerPolicy
from search_spaces.resolution import Resolution

_PACKAGE = Path(__file__).resolve().parent


class Part(Protocol):
    """What one fused operator of a network became; equal ones are one object."""

    price: float | None
    """Free for the backend: seconds, None until they are known."""

    @property
    def name(self) -> str:
        """Of its layer, or of the operator where it has none."""

    @property
    def kernels(self) -> Sequence[Recipe]:
        """What computes it."""


class NetworkParts(Protocol):
    """The operators of a network under any policy, by arithmetic alone."""

    def parts(
        self, kept: Sequence[int], formats: Formats | None = None, kernels: Mapping[str, int] = {}
    ) -> Sequence[Part]:
        """In the order of execution, where channel group i keeps kept[i] units, and layers have such formats and
        kernels so wide."""


class Latencies(Protocol):
    """Whoever knows what operators take, such as `OperatorPrices`."""

    def latencies(self, recipes: Sequence[Recipe]) -> Mapping[str, float]:
        """Seconds by recipe text; RefusedOperatorError where one cannot be measured."""


@dataclass(frozen=True)
class Engine:
    """What runs networks on a device, and how its operators are told apart and timed.

    Attributes:
        timer: "module:Class" of what runs single operators in the measuring process.
        packages: distributions on whose versions latencies depend.
        sources: files and folders beside this one that turn a recipe into code, or time it.
        parts: of a network, for so many threads.
        target: what code is compiled for.
        unsupported: reasons why a network cannot be priced.
        processor: that runs the code.
        integers: whether layers of at most 8 bits run as such. All else that makes weights small leaves them as they
            are: few bits, and zeros, save bytes and no time.
    """

    timer: str
    packages: tuple[str, ...]
    sources: tuple[str, ...]
    parts: Callable[[ModelGraph, int], NetworkParts]
    target: Callable[[], str]
    unsupported: Callable[[ModelGraph], Sequence[str]]
    processor: Callable[[], str] = cpu_name
    integers: bool = False

    def device(self, name: str, threads: int) -> DeviceKey:
        """What the engine runs on, as the key of its table."""
        versions = ",".join(f"{package}={importlib.metadata.version(package)}" for package in self.packages)
        return DeviceKey(name, self.processor(), self.target(), threads, versions, _digest_of(self.sources))


class TableBackend(HardwareBackend):
    """The sum of a network's operators in the latency table of one engine on one device.

    Args:
        engine: one of `ENGINES`.
        graph: the uncompressed network.
        prices: knows the operators, and measures those that are missing.
        threads: the engine may use.
        device: elsewhere, for engines that reach it; this machine by default.

    Raises:
        InputError: an engine that is not known, or does not reach the device.
    """

    def __init__(
        self,
        engine: str,
        graph: ModelGraph,
        prices: Latencies,
        *,
        threads: int = 1,
        device: RemoteDevice | None = None,
    ) -> None:
        self.name = engine
        self._engine = find_engine(engine, device)
        self._graph = graph
        self._prices = prices
        self._threads = threads
        self._parts: dict[tuple[int, tuple[Block, ...]], NetworkParts] = {}  # by number of the resolution, and blocks

    def supports(self, graph: ModelGraph) -> tuple[str, ...]:
        """Reasons why this backend cannot price the graph; empty where it can."""
        if graph.digest != self._graph.digest:
            return (
                f"the backend prices policies of one network (digest {self._graph.digest[:12]}), and this is another "
                f"(digest {graph.digest[:12]})",
            )
        for name, layer in graph.treatments:
            treated = replace(layer, kernel=None) != LayerPolicy()
            if layer.factors is not None or (treated and not self._engine.integers):
                what = "whole" if self._engine.integers else "dense, whole and in float32"
                return (f"{name!r} is not only pruned, and operators are measured {what} alone",)
        return tuple(self._engine.unsupported(graph))

    def require(self, graph: ModelGraph) -> None:
        """InputError with the first reason why the graph cannot be priced, where there is one."""
        if reasons := self.supports(graph):
            raise InputError(f"backend {self.name!r} cannot price the network: {reasons[0]}")

    def recipes(
        self,
        kept: Sequence[int],
        formats: Formats | None = None,
        resolution: Resolution | None = None,
        cuts: Cuts = NONE,
    ) -> list[Recipe]:
        """The operators of the network where group i keeps kept[i] units, layers have such formats, images that
        resolution, and some blocks and rims of kernels are gone, as often as they are called."""
        parts = self._network(resolution, cuts).parts(kept, formats, dict(cuts.kernels))
        return [kernel for part in parts for kernel in part.kernels]

    def price(
        self,
        kept: Sequence[int],
        formats: Formats | None = None,
        resolution: Resolution | None = None,
        cuts: Cuts = NONE,
    ) -> float:
        """Seconds of the network that `recipes` describes; `asked_of` gives the arguments.

        Raises:
            RefusedOperatorError: one of its operators cannot be measured.
        """
        return sum(price for _, price in self._priced(kept, formats, resolution, cuts))

    def estimate(self, graph: ModelGraph) -> HardwareCost:
        """Counts and latency of the graph, each layer's share in seconds.

        Raises:
            InputError: the graph is another network's.
            RefusedOperatorError: one of its operators cannot be measured.
        """
        self.require(graph)
        shares: dict[str, float] = {}
        total = 0.0
        for name, price in self._priced(*asked_of(graph)):
            shares[name] = shares.get(name, 0.0) + price
            total += price
        counted = CountingBackend().estimate(graph)
        return replace(counted, latency_s=total, by_layer=shares, measured=True, backend=self.name)

    def _network(self, resolution: Resolution | None, cuts: Cuts) -> NetworkParts:
        graph = self._graph.at(resolution)
        key = graph.resolution_number, cuts.blocks
        if key not in self._parts:
            self._parts[key] = self._engine.parts(without_blocks(graph, cuts.blocks), self._threads)
        return self._parts[key]

    def _priced(
        self, kept: Sequence[int], formats: Formats | None, resolution: Resolution | None, cuts: Cuts
    ) -> list[tuple[str, float]]:
        parts = self._network(resolution, cuts).parts(kept, formats, dict(cuts.kernels))
        new = [part for part in parts if part.price is None]
        if new:
            known = self._prices.latencies([kernel for part in new for kernel in part.kernels])
            for part in new:
                part.price = sum(known[kernel.recipe] for kernel in part.kernels)
        return [(part.name, part.price or 0.0) for part in parts]


def asked_of(graph: ModelGraph) -> tuple[tuple[int, ...], Formats, Resolution | None, Cuts]:
    """What `TableBackend.price` and `recipes` are asked for a graph."""
    return graph.kept, formats_of(graph), graph.resolution, Cuts.of(graph)


@contextmanager
def open_prices(engine: str, *, threads: int = 1, device: RemoteDevice | None = None) -> Iterator[OperatorPrices]:
    """The engine's table on this machine or the device, with what measures what is missing in it.

    Raises:
        InputError: an engine that is not known, or does not reach the device.
        TrimtabError: the table can be neither opened nor mended.
    """
    found = find_engine(engine, device)
    key = found.device(engine, threads)
    with LatencyTable(default_table_path(key), key) as table:
        if device is None:
            with OperatorTimer(found.timer, threads=threads) as timer:
                yield OperatorPrices(table, timer)
        else:
            with Fleet(device, threads) as fleet:
                yield OperatorPrices(table, fleet)


def find_engine(name: str, device: RemoteDevice | None = None) -> Engine:
    """The engine of that name, on this machine or the device.

    Raises:
        InputError: there is none with a table of operators, or it does not reach devices.
    """
    if name not in ENGINES:
        raise InputError(
            f"there is no table of operators for {name!r}{did_you_mean(name, ENGINES)}; one of {', '.join(ENGINES)} has"
        )
    if device is None:
        return ENGINES[name]
    if name != "tvm":
        raise InputError(f"devices are reached by TVM's RPC, got the engine {name!r}; take 'tvm'")
    return replace(
        ENGINES["tvm"],
        sources=(*ENGINES["tvm"].sources, "tvm/linking.py", "remote/session.py", "remote/worker.py"),
        parts=lambda graph, threads: _tvm_parts(graph, threads, device),
        target=lambda: device.target,
        processor=lambda: f"remote {device.key}",
    )


def _tvm_parts(graph: ModelGraph, threads: int, device: RemoteDevice | None = None) -> NetworkParts:
    from backends.tvm.network_recipes import NetworkRecipes
    from backends.tvm.target import cpu_for

    return NetworkRecipes(graph, cpu_for(threads=threads) if device is None else device.cpu(threads))


def _tvm_target() -> str:
    from backends.tvm.target import cpu_for

    return cpu_for().mcpu


def _tvm_unsupported(graph: ModelGraph) -> Sequence[str]:
    from backends.tvm.compiled import unsupported

    return unsupported(graph)


def _torch_parts(graph: ModelGraph, threads: int) -> NetworkParts:
    from backends.torch_operators import TorchRecipes

    return TorchRecipes(graph)


def _digest_of(sources: Sequence[str]) -> str:
    """Digest of all Python files among the sources."""
    digest = hashlib.sha256()
    for path in (path for name in sources for path in sorted([_PACKAGE / name, *(_PACKAGE / name).rglob("*.py")])):
        if path.is_dir():
            continue
        digest.update(f"{path.relative_to(_PACKAGE).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


_TIMING = ("operator_worker.py", "clock.py")
ENGINES: Mapping[str, Engine] = {
    "tvm": Engine(
        timer="backends.tvm.operator_engine:TvmEngine",
        packages=("apache-tvm",),
        sources=("tvm/kernels", "tvm/target.py", "tvm/code.py", "tvm/operator_engine.py", "tvm/stock.py", *_TIMING),
        parts=_tvm_parts,
        target=_tvm_target,
        unsupported=_tvm_unsupported,
        integers=True,
    ),
    "onnxruntime": Engine(
        timer="backends.onnxruntime_operators:OnnxRuntimeEngine",
        packages=("onnxruntime",),
        sources=("torch_operators.py", "onnxruntime_operators.py", *_TIMING),
        parts=_torch_parts,
        target=lambda: "cpu",
        unsupported=lambda _: (),
    ),
    "torch": Engine(
        timer="backends.torch_engines:TorchEngine",
        packages=("torch",),
        sources=("torch_operators.py", "torch_engines.py", *_TIMING),
        parts=_torch_parts,
        target=lambda: "cpu",
        unsupported=lambda _: (),
    ),
}
"""Engines with a table of operators."""
