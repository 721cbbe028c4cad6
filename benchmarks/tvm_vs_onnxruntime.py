"""Our compiled code against ONNX Runtime's, whole networks and operator by operator, dense and pruned.

    python benchmarks/tvm_vs_onnxruntime.py [--networks resnet20 resnet18] [--threads 1 2] [--operators] [--peers]

Each row is one network: microseconds of both engines, ours over ONNX Runtime's beside the most it may be, what was left
to a fallback, which should be nothing, and seconds to compile. The engines take turns in one process; the ratio is the
median over several processes, since the memory that a process happens to get shifts a network by up to a fifth.
"pruned" has random channel counts, which no vector divides.

`--operators` lists the fused operators of each network instead, each timed alone in both engines' latency tables, those
that lose most time first. `--peers` puts TVM tuned by MetaSchedule, and torch eager and compiled, beside both: a sample
of schedules takes a quarter of a second, so tuning a network takes minutes.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from networks import NETWORKS, Network, odd_counts, variants
from torch import nn

from automl.compression.inference import for_inference
from backends.measuring import Artefact, measure
from backends.onnxruntime import export_onnx
from backends.recipes import Recipe
from backends.table_backend import find_engine, open_prices
from backends.torch_reference import exported_program, reference_output
from backends.tvm import compile_module
from backends.tvm.target import cpu_for
from backends.tvm.tuning import compile_tuned
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import TrimtabError
from search_spaces.graph import ModelGraph

_PEERS = {"tuned": "tvm", "torch": "torch", "torch compiled": "torch_compiled"}
"""What stands beside both, and the engine that runs it."""
_COMPILING_S = 900.0


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    show = print_operators if arguments.operators else print_network
    if not arguments.operators:
        peers = "".join(f"{name:>15}" for name in _PEERS) if arguments.peers else ""
        print(
            f"{'network':17}{'variant':8}{'threads':>7}{'ours us':>11}{'ORT us':>11}{'ratio':>7}{'(range)':>14}"
            f"{'limit':>7}  met{'compile s':>11}  fallbacks{peers}"
        )
    for name in arguments.networks:
        for threads in arguments.threads:
            try:
                show(name, NETWORKS[name], threads, arguments)
            except TrimtabError as error:
                print(f"{name:17}{threads:15}  {error}", flush=True)


def print_network(name: str, network: Network, threads: int, arguments: argparse.Namespace) -> None:
    """A line for each variant of the network."""
    module, example = network.build()
    for variant, pruned in variants(module, example):
        if variant not in arguments.variants:
            continue
        with tempfile.TemporaryDirectory(prefix="trimtab-benchmark-") as folder:
            row = compare(pruned, example, threads, Path(folder), arguments)
        ratio = statistics.median(row.ratios)
        peers = "".join(f"{seconds * 1e6:15.0f}" for seconds in row.peers)
        print(
            f"{name:17}{variant:8}{threads:7}{row.ours * 1e6:11.1f}{row.theirs * 1e6:11.1f}{ratio:7.2f}"
            f"{f'({min(row.ratios):.2f}-{max(row.ratios):.2f})':>14}{network.limit:7.1f}"
            f"  {'yes' if ratio <= network.limit else 'NO ':3}{row.compile_s:11.1f}  {row.fallbacks:9}{peers}",
            flush=True,
        )


@dataclass(frozen=True)
class Row:
    """What was measured of one network: seconds, and the ratio of the engines in each process."""

    ours: float
    theirs: float
    ratios: tuple[float, ...]
    compile_s: float
    fallbacks: str
    peers: tuple[float, ...]


def compare(module: nn.Module, example: torch.Tensor, threads: int, folder: Path, arguments: argparse.Namespace) -> Row:
    """Compiles the network with every engine, and measures them in turns in several processes."""
    start = time.perf_counter()
    compiled = compile_module(module, example, threads=threads)
    compile_s = time.perf_counter() - start
    compiled.export(folder / "ours.so")
    export_onnx(module, example, folder / "model.onnx")
    artefacts = [Artefact("tvm", folder / "ours.so"), Artefact("onnxruntime", folder / "model.onnx")]
    if arguments.peers:
        artefacts += peer_artefacts(module, example, threads, folder, arguments.trials)
    expected = reference_output(module, example)
    processes = [
        measure(
            artefacts,
            example.numpy(),
            expected,
            threads=threads,
            rounds=arguments.rounds,
            timeout_s=_COMPILING_S if arguments.peers else 120.0,
        )
        for _ in range(arguments.processes)
    ]
    ours, theirs, *peers = np.median([[found.latency_s for found in process] for process in processes], axis=0)
    return Row(
        float(ours),
        float(theirs),
        tuple(process[0].latency_s / process[1].latency_s for process in processes),
        compile_s,
        " ".join(f"{kind}:{count}" for kind, count in compiled.fallbacks.items()) or "none",
        tuple(float(seconds) for seconds in peers),
    )


def peer_artefacts(module: nn.Module, example: torch.Tensor, threads: int, folder: Path, trials: int) -> list[Artefact]:
    """The network tuned by MetaSchedule, its batch norms folded beforehand, and exported for torch."""
    paths = {name: folder / f"{name}.{'so' if engine == 'tvm' else 'pt2'}" for name, engine in _PEERS.items()}
    traced = PrunableNetwork(module, example, prove=False).prune({})
    tuned = compile_tuned(for_inference(traced), example, cpu_for(threads=threads), trials=trials)
    tuned.executable.export_library(str(paths["tuned"]))
    for name in ("torch", "torch compiled"):
        torch.export.save(exported_program(module, example), paths[name])
    return [Artefact(engine, paths[name]) for name, engine in _PEERS.items()]


@dataclass
class Line:
    """Fused operators of a network that are equal, in both engines.

    Attributes:
        names: of their layers.
        text: what they compute.
        ours, theirs: seconds of one.
    """

    names: list[str]
    text: str
    ours: float
    theirs: float

    @property
    def lost(self) -> float:
        """Seconds by which ours is slower, all of them together."""
        return len(self.names) * (self.ours - self.theirs)


def print_operators(name: str, network: Network, threads: int, arguments: argparse.Namespace) -> None:
    """The fused operators of each variant of the network, those that lose most time first."""
    module, example = network.build()
    pruner = PrunableNetwork(module, example, prove=False)
    graph = pruner.graph
    counts = {"dense": graph.kept, "pruned": odd_counts(pruner)}
    for variant in arguments.variants:
        lines = operator_lines(graph, counts[variant], threads)
        ours, theirs = (sum(len(line.names) * getattr(line, side) for line in lines) for side in ("ours", "theirs"))
        print(f"{name} {variant}, {threads} threads: ours {ours * 1e6:.0f} us, ORT {theirs * 1e6:.0f} us, sums")
        print(f"{'lost us':>9}{'share':>7}{'calls':>6}{'ours us':>10}{'ORT us':>10}{'ratio':>7}  operator")
        for line in lines:
            share, count = len(line.names) * line.ours / ours, len(line.names)
            ratio = line.ours / line.theirs if line.theirs else float("inf")
            print(
                f"{line.lost * 1e6:9.1f}{share:7.1%}{count:6}{line.ours * 1e6:10.1f}{line.theirs * 1e6:10.1f}"
                f"{ratio:7.2f}  {line.text}  [{line.names[0]}]",
                flush=True,
            )


def operator_lines(graph: ModelGraph, kept: Sequence[int], threads: int) -> list[Line]:
    """Both engines' fused operators of a network, equal ones together, those that lose most time first."""
    sides = {engine: operators_of(engine, graph, kept, threads) for engine in ("tvm", "onnxruntime")}
    prices = {engine: priced(engine, threads, list(side.values())) for engine, side in sides.items()}
    described = descriptions(graph, kept)
    lines: dict[tuple[str, ...], Line] = {}
    for name in dict.fromkeys([*sides["tvm"], *sides["onnxruntime"]]):
        recipes = {engine: side.get(name, []) for engine, side in sides.items()}
        key = tuple(recipe.recipe for side in recipes.values() for recipe in side)
        if not key:
            continue
        if key not in lines:
            ours, theirs = (
                sum(prices[engine].get(recipe.recipe, float("nan")) for recipe in side)
                for engine, side in recipes.items()
            )
            kinds = "+".join(recipe.kind for recipe in recipes["tvm"]) or "nothing"
            lines[key] = Line([], f"{described.get(name, '')} as {kinds}", ours, theirs)
        lines[key].names.append(name)
    return sorted(lines.values(), key=lambda line: -line.lost if line.lost == line.lost else -1.0)


def operators_of(engine: str, graph: ModelGraph, kept: Sequence[int], threads: int) -> dict[str, list[Recipe]]:
    """What each layer, and each operator without weights, becomes in an engine."""
    found: dict[str, list[Recipe]] = {}
    for part in find_engine(engine).parts(graph, threads).parts(kept):
        found.setdefault(part.name, []).extend(part.kernels)
    return found


def priced(engine: str, threads: int, operators: Sequence[Sequence[Recipe]]) -> dict[str, float]:
    """Seconds by recipe; those that are refused are told and left out."""
    found: dict[str, float] = {}
    with open_prices(engine, threads=threads) as prices:
        recipes = [recipe for operator in operators for recipe in operator]
        for refused in prices.fill(recipes):
            print(f"{engine}: {refused}")
        known = [recipe for recipe in recipes if recipe.recipe not in prices.refused]
        found.update(prices.latencies(known))
    return found


def descriptions(graph: ModelGraph, kept: Sequence[int]) -> dict[str, str]:
    """In words, by name, each layer and operator of the network under a policy."""
    applied = graph.apply(graph.policy(tuple(kept)))
    found = {operator.name: f"{operator.kind} {tuple(operator.shape)}" for operator in applied.operators}
    for layer in applied.layers:
        kernel = "x".join(map(str, layer.kernel)) or layer.kind
        groups = "" if layer.groups == 1 else f" in {layer.groups} groups"
        stride = "" if set(layer.stride) <= {1} else f" stride {layer.stride[0]}"
        size = "@" + "x".join(map(str, layer.output_size)) if layer.output_size else f"@{layer.positions} rows"
        found[layer.name] = f"{kernel}{stride} {layer.in_channels}->{layer.out_channels}{groups} {size}"
    return found


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--variants", nargs="+", choices=("dense", "pruned"), default=["dense", "pruned"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--operators", action="store_true", help="operator by operator")
    parser.add_argument("--peers", action="store_true", help="MetaSchedule and torch, too")
    parser.add_argument("--trials", type=int, default=64, help="schedules that MetaSchedule samples a function")
    parser.add_argument("--rounds", type=int, default=40, help="samples of each engine in a process, 1 ms or one call")
    parser.add_argument("--processes", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
