"""Networks that a policy compressed, as quantised ONNX models: what torch computes, ONNX Runtime does."""

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from automl.compression import CompressionOptions, Compressor
from automl.compression.treatments import Compressed
from automl.export.qdq import left_in_float
from automl.export.quantised_onnx import quantised_onnx
from automl.models import build_model
from search_spaces.capture import PrunableNetwork
from search_spaces.graph import ModelGraph
from search_spaces.policy import CompressionPolicy, LayerPolicy


def compress(model: str, policy: LayerPolicy) -> tuple[Compressed, Tensor]:
    """With the policy on all layers, but for activations that never leave a module."""
    torch.manual_seed(0)
    network = build_model(model, {}, classes=10, input_shape=(1, 16, 16)).eval()
    images = torch.rand(32, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    captured = PrunableNetwork(network, images[:1], prove=False)
    options = CompressionOptions(reconstruct=False)
    return Compressor(captured, images, options).compress(CompressionPolicy(everywhere(captured.graph, policy))), images


def everywhere(graph: ModelGraph, policy: LayerPolicy) -> dict[str, LayerPolicy]:
    hidden = LayerPolicy(weight_bits=policy.weight_bits)
    return {layer.name: hidden if "weight_hh" in layer.name else policy for layer in graph.layers}


def run(model: onnx.ModelProto, images: Tensor) -> Tensor:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])


@pytest.mark.parametrize(
    ("model", "policy"),
    [
        ("lenet5", LayerPolicy(sparsity=0.5, weight_bits=8, activation_bits=8)),
        pytest.param("resnet20", LayerPolicy(weight_bits=8, activation_bits=8), marks=pytest.mark.slow),
        pytest.param("mobilenet_v2", LayerPolicy(weight_bits=4, activation_bits=8), marks=pytest.mark.slow),
        pytest.param("vit", LayerPolicy(weight_bits=8, activation_bits=8), marks=pytest.mark.slow),
    ],
)
def test_onnx_runtime_computes_what_torch_does(model: str, policy: LayerPolicy) -> None:
    """Up to values that rounding sends to the other neighbour in one of the two, which is less than quantising does."""
    compressed, images = compress(model, policy)
    with torch.no_grad():
        expected = compressed.module(images)
        found = quantised_onnx(compressed, images)
        assert torch.equal(compressed.module(images), expected)  # it was not changed
    codes = [tensor.name for tensor in found.graph.initializer if tensor.name.endswith("_codes")]
    own = [name for name in left_in_float(found) if "in_proj" not in name]
    assert len(codes) + len(left_in_float(found)) == len(compressed.graph.layers)
    assert own == []
    error = (run(found, images) - expected).abs()
    assert float(error.median()) <= 0.02 * float(expected.std())
    assert (run(found, images).argmax(1) == expected.argmax(1)).float().mean() >= 0.9
    zeros = sum(int((mask == 0).sum()) for mask in compressed.masks.values())
    assert (zeros > 0) == (policy.sparsity is not None)


def test_what_is_part_of_another_module_stays_float() -> None:
    compressed, images = compress("lstm", LayerPolicy(weight_bits=8, activation_bits=8))
    found = quantised_onnx(compressed, images)
    left = left_in_float(found)
    assert left
    assert all("weight_" in name and "part of another module" in reason for name, reason in left.items())
    with torch.no_grad():
        assert torch.allclose(run(found, images), compressed.module(images), atol=1e-3)


@pytest.mark.slow
def test_activations_without_integers_keep_their_quantiser() -> None:
    compressed, images = compress("lenet5", LayerPolicy(activation_bits=4, activation_scheme="power_of_two"))
    found = quantised_onnx(compressed, images)
    assert all("power_of_two" in reason for reason in left_in_float(found).values())
    assert len(left_in_float(found)) == len(compressed.graph.layers)
    assert not any(node.op_type == "QuantizeLinear" for node in found.graph.node)
    with torch.no_grad():
        error = (run(found, images) - compressed.module(images)).abs()
    assert float(error.median()) <= 1e-4
