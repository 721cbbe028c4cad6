"""Recurrent networks that read their input through a low rank, as ONNX models."""

import onnxruntime
import pytest
import torch

from automl.compression import CompressionOptions, Compressor
from automl.export.qdq import left_in_float
from automl.export.quantised_onnx import quantised_onnx
from automl.models import build_model
from search_spaces.capture import PrunableNetwork
from search_spaces.policy import CompressionPolicy, LayerPolicy


@pytest.mark.parametrize("bits", [None, 8])
def test_onnx_runtime_computes_what_torch_does(bits: int | None) -> None:
    model = build_model("gru", {"hidden": 24}, classes=10, input_shape=(1, 16, 16), seed=0).eval()
    images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    network = PrunableNetwork(model, images[:1], prove=False)
    policy = CompressionPolicy({"gru.weight_ih_l0": LayerPolicy(keep=0.5, rank=4, weight_bits=bits)})
    found = Compressor(network, None, CompressionOptions(reconstruct=False)).compress(policy)
    made = quantised_onnx(found, images)
    codes = [tensor.name for tensor in made.graph.initializer if tensor.name.endswith("_codes")]
    assert len(codes) == (0 if bits is None else 1)  # of the linear layer in front
    assert sorted(left_in_float(made)) == ([] if bits is None else ["gru.weight_ih_l0"])
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # products in float32
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(answer), found.module(images), atol=1e-5, rtol=1e-4)
