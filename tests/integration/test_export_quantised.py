"""Networks with few bits are exported as such, verified in every format, and what deviates is found."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch

from automl.compression import Compressed, CompressionOptions, Compressor
from automl.data import load_data
from automl.export import export_network, quantised_onnx
from automl.export.manifest import (
    ARCHITECTURE,
    LIBRARY,
    MANIFEST,
    ONNX,
    POLICY,
    PROGRAM,
    WEIGHTS,
    read_manifest,
    record_file,
)
from automl.export.onnx_export import load_onnx
from automl.export.rebuild import rebuild, rebuild_network
from automl.export.throwaway import Ran
from automl.export.verify import VerifyReport, verify
from automl.models import build_model
from automl.run.artefacts import make_artefact
from automl.training import TrainingOptions, evaluate, train
from backends.onnxruntime import OnnxRuntimeBackend
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError, TrimtabError
from search_spaces.layers import LayerSpec
from search_spaces.policy import CompressionPolicy, LayerPolicy, beside_pruning, layer_to_json

pytestmark = pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")  # torch's, about recurrent layers
EIGHT_BITS = LayerPolicy(weight_bits=8, activation_bits=8)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@cache
def compressor(model: str, epochs: int) -> Compressor:
    torch.manual_seed(0)
    data = load_data("digits", {"size": 16})
    module = build_model(model, classes=10, input_shape=data.input_shape, seed=0)
    train(module, data, TrainingOptions(epochs=epochs, lr=0.02, seed=0))
    images = torch.stack([data.train[index][0] for index in range(64)])
    network = PrunableNetwork(module.eval(), images[:1], prove=False)
    return Compressor(network, images, CompressionOptions(reconstruct=False))


def everywhere(layers: tuple[LayerSpec, ...], policy: LayerPolicy) -> CompressionPolicy:
    """On all layers, but for activations that never leave a module."""
    hidden = replace(policy, activation_bits=None, activation_scheme=None)
    return CompressionPolicy({layer.name: hidden if "weight_hh" in layer.name else policy for layer in layers})


def export(
    directory: Path, policy: LayerPolicy, model: str = "lenet5", epochs: int = 2, module_alone: bool = False
) -> Compressed:
    compress = compressor(model, epochs)
    whole = everywhere(compress.network.graph.layers, policy)
    found, data = compress.compress(whole), load_data("digits", {"size": 16})
    counts = {name: getattr(found.graph, name) for name in ("macs", "params", "weight_bytes")}
    export_network(
        found.module if module_alone else found,
        directory,
        policy=whole,
        architecture={
            "model": model,
            "classes": 10,
            "input_shape": list(data.input_shape),
            "units": compress.kept(whole),
            "layers": {name: layer_to_json(layer) for name, layer in beside_pruning(whole).items()},
        },
        example_input=torch.zeros(1, *data.input_shape),
        data={"name": "digits", "args": {"size": 16}},
        results={"accuracy": evaluate(found.module, data.test), **counts},
        measure_latency=model == "lenet5",
    )
    return found


def kinds(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def failures(report: VerifyReport) -> set[tuple[str, str]]:
    return {(check.artefact, check.check) for check in report.failures}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Compressed]:
    """LeNet-5 in 8 bits, in every format."""
    directory = tmp_path_factory.mktemp("exports") / "best"
    return directory, export(directory, EIGHT_BITS)


@pytest.fixture
def copy(exported: tuple[Path, Compressed], tmp_path: Path) -> Path:
    """The network and its ONNX model alone: the other formats cost more time."""
    path = Path(shutil.copytree(exported[0], tmp_path / "best", ignore=shutil.ignore_patterns(PROGRAM, LIBRARY)))
    edit(path / MANIFEST, lambda document: [document["files"].pop(name) for name in (PROGRAM, LIBRARY)])
    edit(path / MANIFEST, lambda document: document["left_out"].update({PROGRAM: "-", LIBRARY: "-"}))
    return path


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def forge(directory: Path, name: str) -> None:
    record = record_file(directory / name).model_dump()
    edit(directory / MANIFEST, lambda document: document["files"].update({name: record}))


def test_every_format_agrees_in_real_processes(exported: tuple[Path, Compressed]) -> None:
    report = verify(exported[0])
    assert report.ok, report.failures
    found = {(check.artefact, check.check): check for check in report.checks}
    for artefact in (PROGRAM, ONNX, LIBRARY):
        assert found[artefact, "outputs"].figure.startswith("rms(a-b)/range(a)")
        assert found[artefact, "accuracy"].passed
    assert found[WEIGHTS, "bytes of weights"].figure == f"{exported[1].graph.weight_bytes:,}"


def test_the_onnx_model_holds_integers_and_every_engine_is_timed(exported: tuple[Path, Compressed]) -> None:
    directory, compressed = exported
    model = onnx.load(directory / ONNX)
    codes = [tensor for tensor in model.graph.initializer if tensor.name.endswith("_codes")]
    assert {tensor.data_type for tensor in codes} == {onnx.TensorProto.INT8}
    assert len(codes) == len(compressed.graph.layers)
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds(directory / ONNX)
    manifest = read_manifest(directory)
    assert manifest.onnx_float == {}
    assert manifest.left_out == {}
    assert set(manifest.latency) == {"tvm", "onnxruntime"}


def test_the_file_of_weights_is_as_small_as_it_was_counted(exported: tuple[Path, Compressed]) -> None:
    directory, compressed = exported
    stored = safetensors.torch.load_file(directory / WEIGHTS)
    parameters = dict(compressed.module.named_parameters())
    assert sum(stored[name].nbytes for name in parameters) == read_manifest(directory).weight_bytes
    assert (directory / WEIGHTS).stat().st_size < 4 * sum(each.numel() for each in parameters.values()) / 3


def test_codes_and_scales_survive(exported: tuple[Path, Compressed]) -> None:
    directory, compressed = exported
    found = rebuild_network(directory).compressed
    assert found.graph == compressed.graph
    assert found.weights.keys() == compressed.weights.keys()
    for name, weight in found.weights.items():
        assert torch.equal(weight.codes, compressed.weights[name].codes)
        assert torch.equal(weight.side["scale"], compressed.weights[name].side["scale"])
    x = torch.rand(4, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(rebuild(directory)(x), compressed.module(x))


def test_a_forged_model_of_other_numbers_fails_by_what_it_computes(copy: Path) -> None:
    model = onnx.load(copy / ONNX)
    scale = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("weight_scale"))
    scale.CopyFrom(onnx.numpy_helper.from_array(1.2 * onnx.numpy_helper.to_array(scale), scale.name))
    onnx.save(model, copy / ONNX)
    forge(copy, ONNX)
    assert (ONNX, "outputs") in failures(verify(copy))


@pytest.mark.parametrize(("difference", "passes"), [(0.015, True), (0.0165, False)])
def test_rounding_may_cost_a_few_images(
    difference: float, passes: bool, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.3 over the root of 360: 0.0158."""
    network = rebuild(copy)

    def run(artefact: str, folder: Path, images: Path, **_: Any) -> Ran:
        with torch.no_grad():
            outputs = network(torch.from_numpy(np.load(images))).numpy()
        counts = {name: getattr(read_manifest(copy), name) for name in ("params", "macs", "weight_bytes")}
        latency = {"median_s": 1e-4, "p10_s": 1e-4, "p90_s": 1e-4, "runs": 1}
        return Ran(outputs, {"latency": latency, "policy": None, "rounding_step": 2.0**-8, **counts}, None)

    monkeypatch.setattr(sys.modules["automl.export.verify"], "run_artefact", run)
    edit(copy / MANIFEST, lambda document: document.update(accuracy=document["accuracy"] + difference))
    assert failures(verify(copy)) == (set() if passes else {(WEIGHTS, "accuracy"), (ONNX, "accuracy")})


def test_a_policy_of_other_bits_does_not_fit(copy: Path) -> None:
    edit(copy / POLICY, lambda document: document["layers"]["fc1"].update(weight_bits=4))
    forge(copy, POLICY)
    edit(copy / MANIFEST, lambda document: document.update(weight_bytes=document["weight_bytes"] - 1))
    report = verify(copy)
    assert failures(report) == {(POLICY, "fits the network"), (WEIGHTS, "bytes of weights")}
    assert any("'fc1' is treated otherwise" in check.figure for check in report.failures)


def test_an_architecture_of_other_bits_is_bad_input(copy: Path) -> None:
    edit(copy / ARCHITECTURE, lambda document: document["layers"]["fc1"].update(weight_bits=4))
    with pytest.raises(InputError, match=r"model\.safetensors .*'fc1\.weight'") as caught:
        rebuild(copy)
    assert "\n" not in str(caught.value)


def test_a_module_alone_has_no_codes_to_export(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'conv1' is sparse or quantised, and a module alone has no mask or codes"):
        export(tmp_path / "best", EIGHT_BITS, module_alone=True)
    assert list(tmp_path.iterdir()) == []


def test_where_the_quantised_model_fails_there_is_one_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> onnx.ModelProto:
        raise TrimtabError("no such integers")

    monkeypatch.setattr(quantised_onnx, "quantised_onnx", fails)
    found = compressor("lenet5", 2)
    compressed = found.compress(everywhere(found.network.graph.layers, LayerPolicy(weight_bits=8)))
    x = torch.rand(4, 1, 16, 16)
    made = make_artefact("onnxruntime", compressed, x, tmp_path, "network", 1)
    assert "DequantizeLinear" not in kinds(made.artefact.path)


def test_onnx_runtime_is_measured_on_integers(tmp_path: Path) -> None:
    found = compressor("lenet5", 2)
    compressed = found.compress(everywhere(found.network.graph.layers, EIGHT_BITS))
    x = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    made = make_artefact("onnxruntime", compressed, x, tmp_path, "network", 1)
    assert "QuantizeLinear" in kinds(made.artefact.path)
    measured = OnnxRuntimeBackend().measure_file(made.artefact.path, x)
    assert measured.engine == "onnxruntime"
    assert measured.latency_s > 0
    assert measured.max_error is None
    with pytest.raises(TrimtabError, match="answers wrongly"):
        OnnxRuntimeBackend().measure_file(made.artefact.path, x, torch.ones(1, 10).numpy())


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (LayerPolicy(weight_bits=8, activation_bits=6), "6-bit activations"),
        (LayerPolicy(activation_bits=8), "would round its weights"),
        (LayerPolicy(weight_bits=4, weight_scheme="codebook", activation_bits=16), "would round its weights"),
    ],
)
def test_what_onnx_runtime_would_round_otherwise_stays_in_float32(policy: LayerPolicy, reason: str) -> None:
    found = compressor("lenet5", 2)
    compressed = found.compress(everywhere(found.network.graph.layers, policy))
    x = torch.rand(16, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    made = quantised_onnx.quantised_onnx(compressed, x[:1])
    operators = {node.op_type for node in made.graph.node}
    assert "QuantizeLinear" not in operators
    assert ("DequantizeLinear" in operators) == (policy.weight_bits == 8)
    left = quantised_onnx.left_in_float(made)
    inputs = {f"input of {layer.name}" for layer in compressed.graph.layers}
    assert inputs <= left.keys()
    assert all(reason in left[name] for name in inputs)
    with torch.no_grad():
        expected = compressed.module(x)
    answer = torch.from_numpy(load_onnx(made.SerializeToString(), threads=1)(x.numpy()))
    assert float((answer - expected).square().mean().sqrt()) <= 1e-3 * float(expected.std())


POLICIES = {
    "8 bits": EIGHT_BITS,
    "symmetric": replace(EIGHT_BITS, activation_scheme="symmetric"),
    "4 bits": LayerPolicy(weight_bits=4, activation_bits=4),
    "binary": LayerPolicy(weight_bits=1, activation_bits=8),
    "sparse": LayerPolicy(sparsity=0.5, weight_bits=6, activation_bits=8),
    "codebook": LayerPolicy(weight_bits=4, weight_scheme="codebook", activation_bits=16),
}


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("model", "epochs"), [("resnet20", 6), ("lstm", 6), ("vit", 6), ("mobilenet_v2", 5)])
def test_exports_verify(model: str, epochs: int, policy: str, tmp_path: Path) -> None:
    """In the formats that can be made: at least torch's and ONNX."""
    export(tmp_path / "best", POLICIES[policy], model, epochs)
    manifest = read_manifest(tmp_path / "best")
    assert {PROGRAM, ONNX} <= manifest.files.keys()
    report = verify(tmp_path / "best")
    assert report.ok, report.failures
    integers = {"8 bits", "symmetric", "binary", "sparse"}
    if model != "lstm":
        assert ("QuantizeLinear" in kinds(tmp_path / "best" / ONNX)) == (policy in integers)
    assert (manifest.onnx_float == {}) == (policy in integers and model != "lstm")
