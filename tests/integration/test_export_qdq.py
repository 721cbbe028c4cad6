"""QDQ nodes on a float graph: ONNX Runtime computes what the fake-quantised network in torch computes."""

import copy
from collections.abc import Mapping
from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

from automl.compression.quantisation import ActivationQuantiser, Quantised, calibrate, quantise
from automl.export.qdq import insert_qdq, left_in_float
from search_spaces.errors import InputError
from search_spaces.number_formats import NumberFormat

pytestmark = pytest.mark.filterwarnings("ignore")
LAYERS = ("conv", "depth", "tokens", "last")


class Network(nn.Module):
    """A convolution whose batch norm the exporter folds, a residual, a linear layer on a sequence, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.tokens = nn.Linear(8, 12)
        self.last = nn.Linear(12, 4)
        self.quantisers = nn.ModuleDict()

    def read(self, layer: str, x: Tensor) -> Tensor:
        if layer in self.quantisers:
            x = self.quantisers[layer](x)
        read: Tensor = getattr(self, layer)(x)
        return read

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.read("conv", x)).relu()
        x = x + self.read("depth", x)
        x = self.read("tokens", x.flatten(2).transpose(1, 2)).relu()
        return self.read("last", x.mean(1))


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(5))


def network(formats: Mapping[str, NumberFormat]) -> tuple[Network, dict[str, Quantised]]:
    """A network with quantised weights, and these."""
    torch.manual_seed(0)
    module = Network().eval()
    assert module.norm.running_var is not None
    module.norm.running_var.uniform_(0.5, 2.0)
    nn.init.uniform_(module.norm.weight, 0.5, 1.5)
    nn.init.normal_(module.norm.bias)
    found = {}
    for layer, format in formats.items():
        parameter = module.get_parameter(f"{layer}.weight")
        found[f"{layer}.weight"] = quantise(parameter, format)
        parameter.data.copy_(found[f"{layer}.weight"].values)
    return module, found


def quantisers(module: Network, format: NumberFormat) -> dict[str, ActivationQuantiser]:
    """By layer, for what it reads."""
    seen = {}
    for layer in LAYERS:
        module.get_submodule(layer).register_forward_pre_hook(
            lambda _, inputs, layer=layer: seen.update({layer: inputs[0]})  # type: ignore[misc]
        )
    with torch.no_grad():
        module(images())
    return {layer: calibrate(seen[layer], format) for layer in LAYERS}


def to_onnx(module: Network, opset: int) -> onnx.ModelProto:
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        copy.deepcopy(module),
        (images(2),),
        dynamo=True,
        verbose=False,
        opset_version=opset,
        dynamic_shapes=({0: batch},),
    )
    assert program is not None
    found: onnx.ModelProto = program.model_proto
    return found


@cache
def translated(format: NumberFormat, opset: int) -> tuple[Network, dict[str, Quantised], onnx.ModelProto]:
    module, weights = network(dict.fromkeys(LAYERS, format))
    return module, weights, to_onnx(module, opset)


def case(format: NumberFormat, opset: int) -> tuple[Network, dict[str, Quantised], onnx.ModelProto]:
    """All layers in a format; a copy, translated once."""
    return copy.deepcopy(translated(format, opset))


def run(model: onnx.ModelProto, x: Tensor, optimise: bool = False) -> Tensor:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # else layers whose weights alone are quantised are computed with activations in 8 bits
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def types(model: onnx.ModelProto) -> dict[str, str]:
    return {
        tensor.name.removesuffix("_codes"): onnx.TensorProto.DataType.Name(tensor.data_type)
        for tensor in model.graph.initializer
        if tensor.name.endswith("_codes")
    }


@pytest.mark.parametrize(
    ("format", "opset", "kind"),
    [
        (NumberFormat(8, "symmetric", "channel"), 18, "INT8"),
        pytest.param(NumberFormat(8, "asymmetric", "tensor"), 18, "UINT8", marks=pytest.mark.slow),
        pytest.param(NumberFormat(4, "symmetric", "channel"), 18, "INT8", marks=pytest.mark.slow),
        (NumberFormat(4, "symmetric", "channel"), 21, "INT4"),
        pytest.param(NumberFormat(3, "asymmetric", "channel"), 21, "UINT4", marks=pytest.mark.slow),
        pytest.param(NumberFormat(12, "asymmetric", "channel"), 21, "UINT16", marks=pytest.mark.slow),
        pytest.param(NumberFormat(16, "symmetric", "tensor"), 21, "INT16", marks=pytest.mark.slow),
        pytest.param(NumberFormat(1, "binary", "channel"), 21, "INT4", marks=pytest.mark.slow),
        pytest.param(NumberFormat(2, "ternary", "tensor"), 18, "INT8", marks=pytest.mark.slow),
        pytest.param(NumberFormat(8, "symmetric", "group:4"), 21, "INT8", marks=pytest.mark.slow),
        (NumberFormat(4, "asymmetric", "group:5"), 21, "UINT4"),
    ],
)
def test_weights_become_integers(format: NumberFormat, opset: int, kind: str) -> None:
    """Of every layer, of the folded one and the transposed one, too."""
    module, weights, plain = case(format, opset)
    before = plain.SerializeToString()
    model = insert_qdq(plain, weights, {})
    assert plain.SerializeToString() == before
    assert left_in_float(model) == {}
    assert list(types(model).values()) == [kind] * 4
    with torch.no_grad():
        expected = module(images())
    assert torch.allclose(run(model, images()), expected, atol=1e-5)
    assert torch.allclose(run(model, images(), optimise=True), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("format", "opset", "reason"),
    [
        (NumberFormat(5, "power_of_two"), 21, "no numbers of the scheme 'power_of_two'"),
        pytest.param(
            NumberFormat(2, "codebook", "tensor"), 21, "no numbers of the scheme 'codebook'", marks=pytest.mark.slow
        ),
        pytest.param(NumberFormat(4, "dorefa"), 21, "no numbers of the scheme 'dorefa'", marks=pytest.mark.slow),
        (NumberFormat(12, "symmetric"), 18, "opset 18 has no integers of 12 bits"),
        pytest.param(NumberFormat(8, "symmetric", "group:4"), 18, "opset 18 has no blocks", marks=pytest.mark.slow),
        (NumberFormat(16, "bf16"), 18, ""),
        pytest.param(NumberFormat(16, "fp16"), 18, "", marks=pytest.mark.slow),
    ],
)
def test_what_onnx_cannot_say_stays_float_with_the_reason(format: NumberFormat, opset: int, reason: str) -> None:
    module, weights, plain = case(format, opset)
    model = insert_qdq(plain, weights, {})
    left = left_in_float(model)
    assert types(model) == {}
    if reason:
        assert left.keys() == weights.keys()
        assert all(reason in each for each in left.values())
    else:  # but for the weight that batch norm was folded into
        assert left == {"conv.weight": f"batch norm was folded into numbers of {format.scheme}"}
        assert sum(tensor.name.endswith("_half") for tensor in model.graph.initializer) == 3
    with torch.no_grad():
        assert torch.allclose(run(model, images()), module(images()), atol=1e-5)


@pytest.mark.parametrize(
    ("format", "opset", "nodes"),
    [
        (NumberFormat(8, "asymmetric", "tensor"), 18, {"QuantizeLinear": 4, "Clip": 0}),
        pytest.param(
            NumberFormat(8, "symmetric", "tensor"), 18, {"QuantizeLinear": 4, "Clip": 4}, marks=pytest.mark.slow
        ),
        pytest.param(
            NumberFormat(4, "asymmetric", "tensor"), 18, {"QuantizeLinear": 4, "Clip": 4}, marks=pytest.mark.slow
        ),
        pytest.param(
            NumberFormat(4, "asymmetric", "tensor"), 21, {"QuantizeLinear": 4, "Clip": 0}, marks=pytest.mark.slow
        ),
        (NumberFormat(2, "symmetric", "tensor"), 21, {"QuantizeLinear": 4, "Clip": 4}),
        pytest.param(
            NumberFormat(16, "asymmetric", "tensor"), 21, {"QuantizeLinear": 4, "Clip": 0}, marks=pytest.mark.slow
        ),
        pytest.param(
            NumberFormat(1, "asymmetric", "tensor"), 21, {"QuantizeLinear": 4, "Clip": 4}, marks=pytest.mark.slow
        ),
        (NumberFormat(16, "fp16", "tensor"), 18, {"QuantizeLinear": 0, "Cast": 8, "Clip": 4}),
        pytest.param(
            NumberFormat(16, "bf16", "tensor"), 18, {"QuantizeLinear": 0, "Cast": 8, "Clip": 4}, marks=pytest.mark.slow
        ),
    ],
)
def test_layers_read_quantised_activations(format: NumberFormat, opset: int, nodes: Mapping[str, int]) -> None:
    """All layers with weights in 8 bits. Outputs differ where rounding sends a value to the other neighbour: most do
    not, and none by more than steps do."""
    module, weights, float_model = case(NumberFormat(8), opset)
    found = quantisers(module, format)
    model = insert_qdq(float_model, weights, {f"{layer}.weight": each for layer, each in found.items()})
    assert left_in_float(model) == {}
    counts = {kind: sum(node.op_type == kind for node in model.graph.node) for kind in nodes}
    assert counts == dict(nodes)
    with torch.no_grad():
        plain = module(images(50))
        module.quantisers.update(found)
        expected = module(images(50))
    assert not torch.allclose(plain, expected, atol=1e-5)
    for optimise in (False, True):
        error = (run(model, images(50), optimise) - expected).abs()
        assert float(error.median()) <= 1e-5
        assert float(error.max()) <= max(1e-5, float((plain - expected).abs().max()))


def test_a_single_layer_is_quantised_exactly() -> None:
    """Values beyond the range, too: nothing is rounded twice here."""
    module = nn.Sequential(nn.Linear(6, 5)).eval()
    weight = quantise(module[0].weight, NumberFormat(8))
    module[0].weight.data.copy_(weight.values)
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    program = torch.onnx.export(module, (x,), dynamo=True, verbose=False, opset_version=21)
    assert program is not None
    for bits in (2, 3, 4, 7, 8, 9, 16):
        for scheme in ("symmetric", "asymmetric"):
            quantiser = calibrate(x[:20] / 2, NumberFormat(bits, scheme, "tensor"))
            model = insert_qdq(program.model_proto, {"0.weight": weight}, {"0.weight": quantiser})
            with torch.no_grad():
                expected = module(quantiser(x))
            for optimise in (False, True):
                assert torch.allclose(run(model, x, optimise), expected, atol=1e-5), (bits, scheme, optimise)


def test_a_tensor_is_quantised_for_all_who_read_it() -> None:
    module, weights, plain = case(NumberFormat(8), 18)
    (shared,) = {node.input[0] for node in plain.graph.node if "depth.weight" in node.input}
    quantiser = quantisers(module, NumberFormat(8, "asymmetric", "tensor"))["depth"]
    by_tensor = insert_qdq(plain, weights, {shared: quantiser})
    by_layer = insert_qdq(plain, weights, {"depth.weight": quantiser})
    assert sum(node.op_type == "QuantizeLinear" for node in by_tensor.graph.node) == 2
    assert sum(node.op_type == "QuantizeLinear" for node in by_layer.graph.node) == 1
    assert not torch.equal(run(by_tensor, images()), run(by_layer, images()))


def test_activations_that_onnx_has_no_numbers_for_are_named() -> None:
    module, _, plain = case(NumberFormat(8), 18)
    found = quantisers(module, NumberFormat(4, "power_of_two", "tensor"))
    model = insert_qdq(plain, {}, {"conv.weight": found["conv"]})
    assert left_in_float(model) == {"conv.weight": "ONNX has no numbers of the scheme 'power_of_two'"}


def test_masked_binary_weights_keep_their_zeros() -> None:
    module, _ = network({})
    weight = module.conv.weight
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    found = quantise(weight, NumberFormat(1, "binary"), mask=mask)
    weight.data.copy_(found.values)
    model = insert_qdq(to_onnx(module, 18), {"conv.weight": found}, {})
    assert types(model) == {"conv.weight": "INT8"}
    with torch.no_grad():
        assert torch.allclose(run(model, images()), module(images()), atol=1e-5)


def test_what_does_not_fit_the_model_is_refused() -> None:
    _, weights, plain = case(NumberFormat(8), 18)
    quantiser = calibrate(torch.ones(3), NumberFormat(8, "asymmetric", "tensor"))
    other = quantise(torch.randn(4, 12, generator=torch.Generator().manual_seed(9)), NumberFormat(8))
    for wrong, message in (
        ({"lost.weight": weights["last.weight"]}, "no weight 'lost.weight'.*did you mean 'last.weight'"),
        ({"last.weight": other}, "is not the quantised one"),
        ({"tokens.weight": other}, "no weight 'tokens.weight'"),
        ({"last.weight": weights["tokens.weight"]}, "is not the quantised one"),
    ):
        with pytest.raises(InputError, match=message):
            insert_qdq(plain, wrong, {})
    with pytest.raises(InputError, match="no node of the model reads"):
        insert_qdq(plain, {}, {"nothing": quantiser})
    plain.opset_import[0].version = 12
    with pytest.raises(InputError, match="needs ONNX opset 13, the model has 12"):
        insert_qdq(plain, weights, {})


def test_other_metadata_stays() -> None:
    _, weights, plain = case(NumberFormat(8), 18)
    helper.set_model_props(plain, {"author": "somebody"})
    model = insert_qdq(plain, weights, {})
    assert {entry.key: entry.value for entry in model.metadata_props}["author"] == "somebody"
    assert np.isfinite(run(model, images()).numpy()).all()
