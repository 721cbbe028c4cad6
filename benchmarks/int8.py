"""Networks in 8 bits: ours and ONNX Runtime's, beside both in float32, with what they answer.

    OMP_NUM_THREADS=1 python benchmarks/int8.py [--networks resnet20 ...] [--train]

Each network is trained shortly on glyphs (the cache keeps it), and quantised after calibration alone: 8 bits, weights
per channel, activations from the range on 256 training images. Four programs take turns in one process, several
processes after each other; latencies are medians, one thread. ONNX Runtime's 8-bit program is the faster of two: QDQ
nodes from our policy, and what its own `quantize_static` makes of the float network with the same images. Accuracies
are of the whole test split; that of our 8-bit code is of the very program that was timed.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from automl.baseline import load_baseline
from automl.compression import CompressionOptions, Compressor
from automl.compression.treatments import Compressed
from automl.data import DataBundle, load_data
from automl.export.integers import integer_network
from automl.export.quantised_onnx import quantised_onnx
from automl.metrics import accuracy
from automl.models import build_model
from automl.training import TrainingOptions, evaluate
from backends.measuring import Artefact, measure
from backends.onnxruntime import export_onnx
from backends.tvm import compile_module
from search_spaces.capture import PrunableNetwork
from search_spaces.policy import CompressionPolicy, LayerPolicy

LIMITS = {"resnet20": 0.6, "resnet56": 0.6, "vgg11": 0.8, "mobilenet_v2": 0.8}
"""Of our 8-bit latency over ONNX Runtime's."""
DATA = {"classes": 10, "size": 32, "images": 8000}
TRAINING = TrainingOptions(epochs=5, lr=0.05)
CALIBRATION = 256
EIGHT_BITS = LayerPolicy(weight_bits=8, activation_bits=8)


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    data = load_data("glyphs", DATA)
    columns = ("ours f32", "ours 8", "ORT f32", "ORT 8 QDQ", "ORT 8 own")
    print(
        f"{'us':14}"
        + "".join(f"{name:>11}" for name in columns)
        + f"{'8 bit/ORT':>11}{'limit':>7}{'f32/8':>7}{'accuracy f32':>14}{'fake 8':>8}{'ours 8':>8}{'ORT 8':>8}",
        flush=True,
    )
    for name in arguments.networks:
        model = trained(name, data)
        if not arguments.train:
            print_row(name, model, data, arguments)


def trained(name: str, data: DataBundle) -> nn.Module:
    """The network, trained or from the cache."""
    torch.manual_seed(0)
    model = build_model(name, {}, classes=data.classes, input_shape=data.input_shape)
    return load_baseline(model, {"name": name}, data, TRAINING)


@dataclass(frozen=True)
class Programs:
    """The files that are timed, in the order of the columns, and the 8-bit networks by themselves."""

    artefacts: list[Artefact]
    compressed: Compressed
    integers: Any


def print_row(name: str, model: nn.Module, data: DataBundle, arguments: argparse.Namespace) -> None:
    """Everything about one network."""
    images = torch.stack([data.train[index][0] for index in range(CALIBRATION)])
    with tempfile.TemporaryDirectory(prefix="trimtab-benchmark-") as folder:
        programs = write_programs(model, images, Path(folder))
        rows = [
            [found.latency_s for found in measure(programs.artefacts, images[:1].numpy(), rounds=arguments.rounds)]
            for _ in range(arguments.processes)
        ]
        theirs = answers(programs.artefacts[4].path, data)
    ours_f32, ours, ort_f32, qdq, own = (statistics.median(column) for column in zip(*rows, strict=True))
    ratio = statistics.median(row[1] / min(row[3], row[4]) for row in rows)
    gain = statistics.median(row[0] / row[1] for row in rows)
    float_accuracy = evaluate(model, data.test, accuracy)
    fake = evaluate(programs.compressed.module, data.test, accuracy)
    exact = hits(data, lambda image: programs.integers.run(image))
    print(
        f"{name:14}"
        + "".join(f"{seconds * 1e6:11.1f}" for seconds in (ours_f32, ours, ort_f32, qdq, own))
        + f"{ratio:11.2f}{LIMITS[name]:7.1f}{gain:7.2f}{float_accuracy:14.2%}{fake:8.2%}{exact:8.2%}{theirs:8.2%}",
        flush=True,
    )


def write_programs(model: nn.Module, images: torch.Tensor, folder: Path) -> Programs:
    """Compiles, quantises and exports."""
    example = images[:1]
    network = PrunableNetwork(model, example, prove=False)
    policy = CompressionPolicy({layer.name: EIGHT_BITS for layer in network.graph.layers})
    compressed = Compressor(network, images, CompressionOptions(reconstruct=False)).compress(policy)
    module, integers, left = integer_network(compressed)
    if left:
        raise SystemExit(f"left in float32: {left}")
    compile_module(model, example).export(folder / "f32.so")
    compiled = compile_module(module, example, integers=integers)
    compiled.export(folder / "8.so")
    export_onnx(model, example, folder / "f32.onnx")
    onnx.save(quantised_onnx(compressed, example), folder / "qdq.onnx")
    quantise_by_onnxruntime(folder / "f32.onnx", images, folder / "own.onnx")
    files = [("tvm", "f32.so"), ("tvm", "8.so"), *(("onnxruntime", f"{n}.onnx") for n in ("f32", "qdq", "own"))]
    return Programs([Artefact(engine, folder / file) for engine, file in files], compressed, compiled)


class Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped
    """Calibration images, one after the other."""

    def __init__(self, name: str, images: torch.Tensor) -> None:
        self._images: Iterator[dict[str, Any]] = iter([{name: image[None].numpy()} for image in images])

    def get_next(self) -> dict[str, Any] | None:
        """The next one."""
        return next(self._images, None)


def quantise_by_onnxruntime(source: Path, images: torch.Tensor, target: Path) -> None:
    """ONNX Runtime's own static quantisation, as its documentation advises: QDQ, weights per channel."""
    prepared = source.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared))
    name = onnx.load(prepared).graph.input[0].name
    quantize_static(
        str(prepared),
        str(target),
        Reader(name, images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def answers(path: Path, data: DataBundle) -> float:
    """Accuracy of an ONNX model."""
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return hits(data, lambda image: session.run(None, {name: image})[0])


def hits(data: DataBundle, run: Any) -> float:
    """Share of the test images that a program of batch 1 gets right."""
    found = [int(run(image[None].numpy()).argmax()) == int(label) for image, label in iterate(data.test)]
    return float(np.mean(found))


def iterate(dataset: Any) -> Iterator[tuple[torch.Tensor, Any]]:
    """Images and labels."""
    return (dataset[index] for index in range(len(dataset)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=LIMITS, default=list(LIMITS), metavar="NAME")
    parser.add_argument("--train", action="store_true", help="train only, which the cache remembers")
    parser.add_argument("--rounds", type=int, default=60, help="samples of each program in a process")
    parser.add_argument("--processes", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
