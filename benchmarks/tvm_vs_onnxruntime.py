"""Our compiled code against ONNX Runtime's, dense and pruned, timed in turns in one process; prints the ratios.

    python benchmarks/tvm_vs_onnxruntime.py [--models resnet20 mobilenet_v2] [--size 32] [--keep 0.5] [--threads 1]

Each row: one network; microseconds (medians) of both engines, ours over ONNX Runtime's of medians and of tenth
percentiles (less touched by busy neighbours), seconds to compile, and what was left to stock TVM, which should be
nothing. "odd" is pruned to random channel counts, which no vector divides.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from automl.models import build_model
from backends.measuring import Artefact, measure
from backends.onnxruntime import export_onnx
from backends.torch_reference import reference_output
from backends.tvm import compile_module
from search_spaces.capture import PrunableNetwork


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    shape = (arguments.channels, arguments.size, arguments.size)
    print(f"{'network':28}{'ours us':>10}{'ORT us':>10}{'ratio':>8}{'p10':>8}{'compile s':>11}  fallbacks")
    for name in arguments.models:
        model = build_model(name, {}, classes=10, input_shape=shape)
        example = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
        for label, module in variants(model, example, arguments.keep):
            print(row(f"{name} {label}", module, example, arguments), flush=True)


def variants(model: nn.Module, example: torch.Tensor, keep: float) -> Iterator[tuple[str, nn.Module]]:
    """The network, the network with a part of every channel group, and one with random channel counts."""
    yield "dense", model
    network = PrunableNetwork(model, example, prove=False)
    rng = np.random.default_rng(0)
    widths = {group.name: group.width for group in network.graph.groups}
    yield f"keep {keep:g}", network.prune({name: np.arange(max(1, round(keep * w))) for name, w in widths.items()})
    odd = {name: max(1, round(rng.uniform(0.3, 0.95) * w)) for name, w in widths.items()}
    yield "odd", network.prune({name: np.arange(kept) for name, kept in odd.items()})


def row(label: str, module: nn.Module, example: torch.Tensor, arguments: argparse.Namespace) -> str:
    """One line of the table."""
    with tempfile.TemporaryDirectory(prefix="trimtab-benchmark-") as name:
        folder = Path(name)
        start = time.perf_counter()
        compiled = compile_module(module, example, threads=arguments.threads)
        seconds = time.perf_counter() - start
        compiled.export(folder / "model.so")
        export_onnx(module, example, folder / "model.onnx")
        artefacts = [Artefact("tvm", folder / "model.so"), Artefact("onnxruntime", folder / "model.onnx")]
        ours, theirs = measure(
            artefacts,
            example.numpy(),
            reference_output(module, example),
            threads=arguments.threads,
            rounds=arguments.rounds,
        )
    return (
        f"{label:28}{ours.latency_s * 1e6:10.1f}{theirs.latency_s * 1e6:10.1f}"
        f"{ours.latency_s / theirs.latency_s:8.3f}{ours.p10_s / theirs.p10_s:8.3f}{seconds:11.2f}  "
        f"{compiled.fallbacks or 'none'}"
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet20"], help="networks of the zoo")
    parser.add_argument("--size", type=int, default=32, help="rows and columns of the input")
    parser.add_argument("--channels", type=int, default=3, help="channels of the input")
    parser.add_argument("--keep", type=float, default=0.5, help="part of every channel group that the pruned one keeps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=100, help="samples of each engine, about a millisecond each")
    return parser.parse_args()


if __name__ == "__main__":
    main()
