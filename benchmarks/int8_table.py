"""The latency table against the clock where some layers have 8 bits and others are float32.

    python benchmarks/int8_table.py [--networks resnet20 mobilenet_v2] [--policies 40] [--cache keep]

Each policy prunes every channel group to a random width and gives a random share of the layers 8 bits. Its network is
really pruned, quantised, compiled and measured, as in `latency_table.py`; its sum is of the table's operators, the
conversions between codes and numbers among them.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from latency_table import cache, end_to_end, fill, print_errors
from networks import NETWORKS

from automl.compression import CompressionOptions, Compressor
from automl.export.integers import integer_network
from backends.integers import formats_of
from backends.table_backend import TableBackend, open_prices
from backends.tvm import compile_module
from search_spaces.capture import PrunableNetwork
from search_spaces.channel_space import ChannelSpace
from search_spaces.policy import CompressionPolicy, LayerPolicy

IMAGES = 32
"""Random ones, to calibrate on: latencies do not depend on what the codes mean."""


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    with cache(arguments.cache):
        for name in arguments.networks:
            print_network(name, arguments)


def print_network(name: str, arguments: argparse.Namespace) -> None:
    """The table's error on one network."""
    module, example = NETWORKS[name].build()
    network = PrunableNetwork(module, example, prove=False)
    space = ChannelSpace.build(network.graph)
    rng = np.random.default_rng(arguments.seed)
    policies = [mixed(space, rng) for _ in range(arguments.policies)]
    graphs = [network.graph.apply(policy) for policy in policies]
    print(f"{name}: {len(policies)} random policies, float32 and 8 bits", flush=True)
    with open_prices("tvm", threads=arguments.threads) as prices:
        backend = TableBackend("tvm", network.graph, prices, threads=arguments.threads)
        fill(prices, [recipe for graph in graphs for recipe in backend.recipes(graph.kept, formats_of(graph))])
        sums = np.array([backend.price(graph.kept, formats_of(graph)) for graph in graphs])
        pace_s = prices.table.pace_s
    images = torch.randn(IMAGES, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    compressor = Compressor(network, images, CompressionOptions(reconstruct=False))
    programs = [partial(export, compressor, policy, example, arguments.threads) for policy in policies]
    print_errors(sums, end_to_end(programs, example, arguments, pace_s), arguments.verbose, ("5 %", "0.98"))


def mixed(space: ChannelSpace, rng: np.random.Generator) -> CompressionPolicy:
    """Random widths, and 8 bits for a random share of the layers."""
    policy = space.graph.policy(space.sample(rng))
    share = rng.random()
    layers = dict(policy.layers)
    for layer in space.graph.layers:
        if rng.random() < share:
            keep = layers[layer.name].keep if layer.name in layers else None
            layers[layer.name] = LayerPolicy(keep=keep, weight_bits=8, activation_bits=8)
    return CompressionPolicy(layers)


def export(compressor: Compressor, policy: CompressionPolicy, example: torch.Tensor, threads: int, path: Path) -> None:
    """Compiles the network really compressed."""
    module, integers, _ = integer_network(compressor.compress(policy))
    compile_module(module, example, threads=threads, integers=integers).export(path)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["resnet20", "mobilenet_v2"], metavar="NAME")
    parser.add_argument("--policies", type=int, default=40)
    parser.add_argument("--processes", type=int, default=5, help="that each network is measured in")
    parser.add_argument("--group", type=int, default=8, help="networks that take turns in a process")
    parser.add_argument("--rounds", type=int, default=60, help="samples of each network in a process")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", choices=("fresh", "keep"), default="fresh", help="keep: the user's own table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="each policy, too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
