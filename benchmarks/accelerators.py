"""What pricing costs: policies of 50 layers on every accelerator that is shipped, beside SCALE-Sim and ZigZag.

The layers are those of MobileNetV2 at 224 px; hardware that cannot run them gets ResNet-56 at 32 px, or 50 linear
layers. Policies draw bits for each layer from those that the hardware has. "memoise" is the first price of the network:
every layer under every pair of bits; then policies are priced one at a time and 64 at once, medians. Peers need an
interpreter that has them (`pip install scalesim "numpy<2.4"`; `pip install zigzag-dse six`); where they cannot be
imported they are passed over.

    OMP_NUM_THREADS=1 python benchmarks/accelerators.py [--only NAME ...] [--scalesim PYTHON] [--zigzag PYTHON]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from automl.models import build_model
from backends.accelerators.accelerator import Accelerator
from backends.accelerators.catalogue import load, names
from backends.accelerators.pricing import PolicyPrices
from backends.accelerators.workloads import IntArray, Workload, Workloads, of_layer
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph
from search_spaces.number_formats import MOST_BITS
from search_spaces.policy import LayerPolicy

BATCH = 64
MEMOISE_S, SINGLE_MS, BATCH_MS = 0.5, 0.2, 0.01
"""Limits: of the first price, and of a policy alone or in a batch."""
PEER_LAYERS = 8


@dataclass(frozen=True)
class Times:
    """Seconds to memoise, milliseconds of a policy alone and in a batch."""

    memoise_s: float
    single_ms: float
    batch_ms: float

    @property
    def over(self) -> float:
        """The largest share of its limit."""
        return max(self.memoise_s / MEMOISE_S, self.single_ms / SINGLE_MS, self.batch_ms / BATCH_MS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="accelerators, by default all that are shipped")
    parser.add_argument("--scalesim", metavar="PYTHON", default=sys.executable, help="an interpreter that has it")
    parser.add_argument("--zigzag", metavar="PYTHON", default=sys.executable, help="an interpreter that has it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    print("| accelerator | class | layers | pairs of bits | memoise, s | one policy, ms | of 64, ms | of the limit |")
    print("|---|---|---|---|---|---|---|---|")
    worst = 0.0
    for name in arguments.only or names():
        accelerator = load(name)
        kind = accelerator.description.class_
        try:
            network, pairs, times = timed_prices(accelerator)
        except InputError as error:
            print(f"| {name} | {kind} | {error} | | | | | |")
            continue
        worst = max(worst, times.over)
        figures = f"{times.memoise_s:.3f} | {times.single_ms:.4f} | {times.batch_ms:.4f} | {times.over:.0%}"
        print(f"| {name} | {kind} | {network} | {pairs} | {figures} |", flush=True)
    print(f"\nlimits: {MEMOISE_S} s, {SINGLE_MS} ms, {BATCH_MS} ms; the worst takes {worst:.0%} of one\n")
    peers({"scalesim": arguments.scalesim, "zigzag": arguments.zigzag})
    return int(worst > 1)


def timed_prices(accelerator: Accelerator[Any]) -> tuple[str, int, Times]:
    """The network, how many pairs of bits its policies draw from, and the times.

    Raises:
        InputError: the hardware runs none of the networks.
    """
    reason: InputError | None = None
    for name, build in NETWORKS.items():
        graph = build()
        prices = PolicyPrices(graph, accelerator)
        treatments = [prices.treatment(policy) for policy in policies(accelerator)]
        rng = np.random.default_rng(0)
        drawn = rng.choice(treatments, (BATCH, len(graph.full_layers)))
        kept = np.array([[group.width for group in graph.groups]] * BATCH, dtype=np.int64).reshape(BATCH, -1)
        try:
            memoise = seconds(partial(prices.price, kept[:1], drawn[:1]))
        except InputError as error:
            reason = error
            continue
        return f"{len(graph.layers)} of {name}", len(treatments), times(prices, memoise, kept, drawn)
    raise reason or InputError("there is no network")


def times(prices: PolicyPrices, memoise_s: float, kept: IntArray, treatments: IntArray) -> Times:
    prices.price(kept, treatments)  # what the first policy did not ask for
    single = [seconds(partial(prices.price, kept[at : at + 1], treatments[at : at + 1])) for at in ROUNDS]
    batch = [seconds(partial(prices.price, kept, treatments)) for _ in ROUNDS]
    return Times(memoise_s, statistics.median(single) * 1e3, statistics.median(batch) * 1e3 / BATCH)


ROUNDS = [*range(BATCH)] * 4


def policies(accelerator: Accelerator[Any]) -> Iterator[LayerPolicy]:
    """One for each pair of bits that the hardware has, of the first scheme that it takes."""
    description = accelerator.description
    weight_schemes = description.weight_schemes or description.schemes
    for weight_bits in description.weight_bits:
        for activation_bits in description.activation_bits:
            other_scheme = activation_bits == 1 or (weight_bits == 1 and len(description.weight_bits) > 1)
            if max(weight_bits, activation_bits) <= MOST_BITS and not other_scheme:
                yield LayerPolicy(
                    weight_bits=weight_bits,
                    activation_bits=activation_bits,
                    weight_scheme=None if "symmetric" in weight_schemes else weight_schemes[0],
                )


@cache
def mobilenet() -> ModelGraph:
    shape = (3, 224, 224)
    return captured(build_model("mobilenet_v2", {"stem": "imagenet"}, classes=1000, input_shape=shape), shape)


@cache
def resnet() -> ModelGraph:
    shape = (3, 32, 32)
    return captured(build_model("resnet56", classes=10, input_shape=shape), shape)


@cache
def perceptron() -> ModelGraph:
    layers = [each for _ in range(50) for each in (nn.Linear(512, 512), nn.ReLU())]
    return captured(nn.Sequential(*layers), (512,))


NETWORKS: dict[str, Callable[[], ModelGraph]] = {
    "MobileNetV2": mobilenet,
    "ResNet-56": resnet,
    "a perceptron": perceptron,
}


def captured(module: nn.Module, shape: Sequence[int]) -> ModelGraph:
    return PrunableNetwork(module.eval(), torch.zeros(1, *shape), prove=False).graph


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peers(interpreters: dict[str, str]) -> None:
    """Seconds a layer of other models on some of the layers, over ours on the same ones, nothing memoised."""
    specs = mobilenet().layers
    rows = [replace(of_layer(spec), weight_bits=8, activation_bits=8) for spec in specs]
    rows = rows[:: -(-len(rows) // PEER_LAYERS)]
    model, works = load("scalesim_32x32_ws"), Workloads.of(rows)
    ours = statistics.median(seconds(lambda: model.run(works)) for _ in range(20)) / len(rows)
    cycles = model.run(works.replace(groups=1)).cycles
    print(f"ours, {len(rows)} layers of MobileNetV2 at once, not memoised: {ours * 1e6:.0f} us a layer")
    layers = json.dumps([shape(row) for row in rows])
    for name, python in interpreters.items():
        command = [python, str(Path(__file__).with_name("accelerator_peers.py")), name]
        done = subprocess.run(command, input=layers, capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:]
            print(f"{name}: passed over: {last[0] if last else 'no answer'}")
            continue
        found = json.loads(done.stdout)
        took = [each["seconds"] for each in found]
        print(
            f"{name}: {statistics.mean(took):.3f} s a layer (from {min(took):.3f} to {max(took):.3f}), "
            f"{statistics.mean(took) / ours:,.0f} times ours"
        )
        if name == "scalesim":
            exact = sum(int(each["cycles"]) == int(count) for each, count in zip(found, cycles, strict=True))
            print(f"  cycles equal on {exact} of {len(found)} layers (one group of each)")


def shape(row: Workload) -> dict[str, int]:
    """As `accelerator_peers` takes it."""
    return {
        "oh": row.out_height,
        "ow": row.out_width,
        "fh": row.kernel_height,
        "fw": row.kernel_width,
        "c": row.in_channels,
        "m": row.out_channels,
        "stride": row.stride_height,
        "groups": row.groups,
    }


if __name__ == "__main__":
    sys.exit(main())
