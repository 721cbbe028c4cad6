"""The latency table against the clock: random policies priced by it, and their networks measured end to end.

    python benchmarks/latency_table.py [--networks resnet20 mobilenet_v2] [--policies 40] [--cache keep]

Each network is really pruned, compiled and measured in several processes, a few networks taking turns in each; its
latency is the median over the processes, since the memory that a process happens to get shifts a network by up to a
fifth. The table starts empty, in a cache that is removed afterwards. Printed beside the targets:

- how far the sums lie from the latencies measured: mean absolute error (MAPE), bias, Spearman's rank correlation;
- the time to price a policy whose operators are known, though it is a new one as a whole, in the middle of a search;
- seconds an operator takes that is new: compiled, checked and measured;
- by how much a network gets faster where a channel group, or all of them, get wider, which it never should.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from networks import NETWORKS, pruned
from scipy.stats import spearmanr

from backends.measuring import Artefact, measure
from backends.operator_prices import OperatorPrices
from backends.recipes import Recipe
from backends.table_backend import TableBackend, open_prices
from backends.tvm import compile_module
from search_spaces.capture import PrunableNetwork
from search_spaces.channel_space import ChannelSpace
from search_spaces.graph import ModelGraph

Kept = tuple[int, ...]
"""Units that each channel group keeps."""

_ENGINE = "tvm"


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    with cache(arguments.cache):
        for name in arguments.networks:
            module, example = NETWORKS[name].build()
            network = PrunableNetwork(module, example, prove=False)
            space = ChannelSpace.build(network.graph, round_to=arguments.round_to)
            rng = np.random.default_rng(arguments.seed)
            policies = [space.sample(rng) for _ in range(arguments.policies)]
            print(f"{name}: {len(policies)} random policies, {arguments.threads} threads", flush=True)
            with open_prices(_ENGINE, threads=arguments.threads) as prices:
                backend = TableBackend(_ENGINE, network.graph, prices, threads=arguments.threads)
                fill(prices, [recipe for kept in policies for recipe in backend.recipes(kept)])
                sums = np.array([backend.price(kept) for kept in policies])
                for line in monotonicity(backend, prices, space):
                    print(line, flush=True)
                print_pricing(network.graph, prices, space, policies, arguments.threads, rng)
            if arguments.processes:
                programs = [partial(export, network, kept, example, arguments.threads) for kept in policies]
                measured = end_to_end(programs, example, arguments, prices.table.pace_s)
                print_errors(sums, measured, arguments.verbose)


def fill(prices: OperatorPrices, recipes: Sequence[Recipe]) -> None:
    """Measures the operators that are not known, and tells what each took."""
    missing = prices.missing(recipes)
    if not missing:
        return
    prices.latencies(missing[:1])  # starts the process that measures
    start = time.perf_counter()
    prices.latencies(missing)
    if count := len(missing) - 1:
        seconds = (time.perf_counter() - start) / count
        print(figure("a new operator", f"{seconds:.3f} s", "0.3 s", f"mean of {count}"), flush=True)


def print_errors(
    sums: npt.NDArray[np.float64],
    measured: npt.NDArray[np.float64],
    verbose: bool,
    targets: tuple[str, str] = ("3 %", "0.99"),
) -> None:
    """Sums of the table beside latencies measured end to end."""
    for label, column in (("MAPE", 0), ("MAPE, clock as read", 1)):
        error = sums / measured[:, column] - 1.0
        spread = f"bias {error.mean():+.2%}, worst {np.abs(error).max():.2%}"
        print(figure(label, f"{np.abs(error).mean():.2%}", targets[0], spread))
    if verbose:
        for estimate, latency in sorted(zip(sums, measured[:, 0], strict=True)):
            print(f"    {estimate * 1e6:9.1f} us in the table, {latency * 1e6:9.1f} measured {estimate / latency:7.3f}")
    print(figure("Spearman", f"{spearmanr(sums, measured[:, 0])[0]:.4f}", targets[1]), flush=True)


def export(network: PrunableNetwork, kept: Kept, example: torch.Tensor, threads: int, path: Path) -> None:
    """Compiles the network really pruned."""
    compile_module(pruned(network, kept), example, threads=threads).export(path)


def end_to_end(
    programs: Sequence[Callable[[Path], None]], example: torch.Tensor, arguments: argparse.Namespace, pace_s: float
) -> npt.NDArray[np.float64]:
    """Seconds of each network [networks, 2], which a program writes to a file: at the pace of the processor that the
    table is for, and as read."""
    found: list[tuple[float, float]] = []
    for start in range(0, len(programs), arguments.group):
        with tempfile.TemporaryDirectory(prefix="trimtab-benchmark-") as name:
            artefacts = []
            for number, program in enumerate(programs[start : start + arguments.group]):
                path = Path(name) / f"{number}.so"
                program(path)
                artefacts.append(Artefact("tvm", path))
            processes = [
                measure(artefacts, example.numpy(), threads=arguments.threads, rounds=arguments.rounds)
                for _ in range(arguments.processes)
            ]
        at_pace = [[each.latency_s * pace_s / each.pace_s for each in process] for process in processes]
        as_read = [[each.latency_s for each in process] for process in processes]
        found += zip(np.median(at_pace, axis=0).tolist(), np.median(as_read, axis=0).tolist(), strict=True)
    return np.array(found)


def print_pricing(
    graph: ModelGraph,
    prices: OperatorPrices,
    space: ChannelSpace,
    policies: Sequence[Kept],
    threads: int,
    rng: np.random.Generator,
) -> None:
    """Milliseconds to price policies whose operators are all in the table."""
    planner = TableBackend(_ENGINE, graph, prices, threads=threads)
    known = [*policies, *(kept for sweep in sweeps(space).values() for kept in sweep)]
    new = [combination(planner, prices, space, rng) for _ in range(len(policies))]
    new = [kept for kept in dict.fromkeys(new) if kept not in known]
    backend = TableBackend(_ENGINE, graph, prices, threads=threads)
    first = [timed(backend.price, kept) for kept in known]
    fresh = [timed(backend.price, kept) for kept in new]
    again = [timed(backend.price, kept) for kept in new]
    details = f"again {statistics.median(again) * 1e3:.3f} ms; worst {max(fresh) * 1e3:.2f}, {len(new)} policies; "
    details += f"where operators are new to the process {statistics.median(first[: len(policies)]) * 1e3:.2f} ms"
    print(figure("a known policy", f"{statistics.median(fresh) * 1e3:.3f} ms", "1 ms", details), flush=True)


def combination(backend: TableBackend, prices: OperatorPrices, space: ChannelSpace, rng: np.random.Generator) -> Kept:
    """A random policy all of whose operators are in the table: groups in random order take a random width that is."""
    kept = list(space.graph.kept)
    for index in rng.permutation(len(kept)):
        before, kept[index] = kept[index], int(rng.choice(space.choices(int(index))))
        if prices.missing(backend.recipes(kept)):
            kept[index] = before
    return tuple(kept)


@dataclass(frozen=True)
class Drop:
    """The largest fall of latency over a rising number of units, as a part of the latency it fell from."""

    part: float
    start: Kept
    end: Kept


def monotonicity(backend: TableBackend, prices: OperatorPrices, space: ChannelSpace) -> Iterator[str]:
    """The largest falls of latency where one group gets wider, and where all do."""
    drops = {name: largest_drop(backend.price, sweep) for name, sweep in sweeps(space).items()}
    names = [name for name in drops if name != "all"]
    worst = max(names, key=lambda name: drops[name].part)
    drop = drops[worst]
    index = [group.name for group in space.graph.groups].index(worst)
    place = f"{worst} from {drop.start[index]} to {drop.end[index]} units" if drop.part else "faster nowhere"
    yield figure("a wider group", f"{-drop.part:.2%}", "-5 %", place)
    drop = drops["all"]
    place = f"from {sum(drop.start)} to {sum(drop.end)} units" if drop.part else "faster nowhere"
    yield figure("all groups wider", f"{-drop.part:.2%}", "-5 %", place)


def sweeps(space: ChannelSpace) -> dict[str, list[Kept]]:
    """By group: every width of it, rising, the others whole. Under "all": as many steps of all of them together."""
    whole = space.graph.kept
    found = {
        group.name: [(*whole[:index], width, *whole[index + 1 :]) for width in space.choices(index)]
        for index, group in enumerate(space.graph.groups)
    }
    choices = [space.choices(index) for index in range(len(whole))]
    most = max(map(len, choices))
    places = [step / max(1, most - 1) for step in range(most)]
    found["all"] = [tuple(each[int(place * (len(each) - 1))] for each in choices) for place in places]
    return found


def largest_drop(price: Callable[[Kept], float], sweep: Sequence[Kept]) -> Drop:
    """Between any two policies of a sweep, the later being the wider."""
    highest, top, drop = 0.0, sweep[0], Drop(0.0, sweep[0], sweep[0])
    for kept in sweep:
        latency = price(kept)
        if latency >= highest:
            highest, top = latency, kept
        elif 1.0 - latency / highest > drop.part:
            drop = Drop(1.0 - latency / highest, top, kept)
    return drop


def timed(price: Callable[[Kept], float], kept: Kept) -> float:
    """Seconds that pricing takes."""
    start = time.perf_counter()
    price(kept)
    return time.perf_counter() - start


def figure(name: str, value: str, target: str, details: str = "") -> str:
    """A line of the report."""
    return f"  {name:18}{value:>10}  (target {target}){'  ' if details else ''}{details}"


@contextmanager
def cache(which: str) -> Iterator[None]:
    """An empty cache that is removed afterwards; with "keep" the user's own."""
    if which == "keep":
        yield
        return
    with tempfile.TemporaryDirectory(prefix="trimtab-benchmark-") as folder:
        os.environ["TRIMTAB_CACHE"] = folder
        yield


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["resnet20", "mobilenet_v2"], metavar="NAME")
    parser.add_argument("--policies", type=int, default=40)
    parser.add_argument("--processes", type=int, default=5, help="that each network is measured in; 0: table only")
    parser.add_argument("--group", type=int, default=8, help="networks that take turns in a process")
    parser.add_argument("--rounds", type=int, default=60, help="samples of each network in a process")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--round-to", type=int, help="grid of the channel counts, the search space's own by default")
    parser.add_argument("--cache", choices=("fresh", "keep"), default="fresh", help="keep: the user's own table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="each policy, too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
