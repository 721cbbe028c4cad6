"""How long applying a policy takes, beside one evaluation of it.

    OMP_NUM_THREADS=1 python benchmarks/apply.py [--repeats 9]

ResNet-20 on digits at 16 px. Applying is everything from a policy to the compressed network; the evaluation runs that
network on the search-validation images. Both take turns; each row gives their medians and the median of their ratios,
which should stay below two.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from automl.compression import CompressionOptions, Compressor
from automl.config import load_config
from automl.configured import example_input, initial_model
from automl.data import load_data
from automl.metrics import accuracy
from automl.training import evaluate
from search_spaces.capture import PrunableNetwork
from search_spaces.graph import ModelGraph
from search_spaces.policy import CompressionPolicy, LayerPolicy

CONFIG = {
    "model": {"name": "resnet20"},
    "data": {"name": "digits", "args": {"size": 16}},
    "budget": {"metric": "macs", "ratio": 0.5},
}
IMAGES = 256

Recipe = Callable[[ModelGraph], CompressionPolicy]


def pruned(graph: ModelGraph) -> CompressionPolicy:
    return CompressionPolicy.from_keep({group.name: 0.5 for group in graph.groups})


def quantised(graph: ModelGraph) -> CompressionPolicy:
    layer = LayerPolicy(weight_bits=8, activation_bits=8)
    return CompressionPolicy({spec.name: layer for spec in graph.layers})


def sparse(graph: ModelGraph) -> CompressionPolicy:
    return CompressionPolicy({spec.name: LayerPolicy(sparsity=0.5) for spec in graph.layers})


def low_rank(graph: ModelGraph) -> CompressionPolicy:
    wide = [spec for spec in graph.layers if spec.kernel == (3, 3) and spec.in_channels >= 16]
    return CompressionPolicy({spec.name: LayerPolicy(rank=spec.out_channels // 2) for spec in wide})


ROWS: dict[str, tuple[Recipe, bool]] = {
    "pruned by magnitude": (pruned, False),
    "the same, reconstructed": (pruned, True),
    f"8 bits, min-max of {IMAGES} images": (quantised, False),
    "half of the weights zero": (sparse, False),
    "singular values, half of the rank": (low_rank, False),
}


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    config = load_config(CONFIG)
    data = load_data(config.data.name, config.data.args)
    network = PrunableNetwork(initial_model(config, data), example_input(data), prove=False)
    images = torch.stack([data.train[index][0] for index in range(IMAGES)])
    print(f"{len(data.val)} search-validation images\n{'':36}{'applied ms':>11}{'evaluated ms':>14}{'ratio':>7}")
    for name, (recipe, reconstruct) in ROWS.items():
        options = CompressionOptions(reconstruct=reconstruct, calibration_images=IMAGES)
        compressor, policy = Compressor(network, images, options), recipe(network.graph)
        applied, evaluated = [], []
        for _ in range(arguments.repeats):
            start = time.perf_counter()
            module = compressor.apply(policy)
            middle = time.perf_counter()
            evaluate(module, data.val, accuracy)
            applied.append(middle - start)
            evaluated.append(time.perf_counter() - middle)
        ratio = statistics.median(one / other for one, other in zip(applied, evaluated, strict=True))
        print(
            f"{name:36}{statistics.median(applied) * 1e3:11.1f}{statistics.median(evaluated) * 1e3:14.1f}{ratio:7.2f}"
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    return parser.parse_args()


if __name__ == "__main__":
    main()
