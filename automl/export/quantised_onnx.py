"""A compressed network as a quantised ONNX model: the float graph, and QDQ nodes from the scales that it was given."""

import copy

import onnx
import torch
from torch import Tensor, nn

from automl.compression.quantisation import ActivationQuantiser, Quantised
from automl.compression.quantisation.activations import HalfActivation, UniformActivation
from automl.compression.structure import quantiser_name
from automl.compression.treatments import Compressed
from automl.export.onnx_export import quiet
from automl.export.qdq import WIDE_OPSET, insert_qdq
from automl.export.torch_export import capture_program
from search_spaces.errors import TrimtabError

_LAYERS = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
_IN_ANOTHER = "its weight is part of another module, which ONNX computes in its own way"


def quantised_onnx(compressed: Compressed, example: Tensor, opset: int = WIDE_OPSET) -> onnx.ModelProto:
    """The network with its weights as integers, and with integers between layers where a policy asks for them.

    What ONNX has no integers for is computed in float32, weights with their quantised values and activations by the
    quantiser's own operators; `qdq.left_in_float` tells which and why.

    Args:
        compressed: the network; it is not changed.
        example: [N, ...] of the network's input.
        opset: of the model.

    Raises:
        TrimtabError: torch cannot translate the network.
    """
    module = copy.deepcopy(compressed.module)
    weights: dict[str, Quantised | Tensor] = {}
    activations: dict[str, ActivationQuantiser] = {}
    left: dict[str, str] = {}
    for layer in compressed.graph.layers:
        if layer.weight_format is None and layer.activation_format is None:
            continue
        owner = dict(module.named_modules()).get(layer.name)
        if not isinstance(owner, _LAYERS):
            left[layer.name] = _IN_ANOTHER
            continue
        weight = f"{layer.name}.weight"
        weights[weight] = compressed.weights.get(layer.name, owner.weight.detach())
        if layer.activation_format is not None:
            quantiser = module.get_submodule(quantiser_name(layer.name))
            if isinstance(quantiser, UniformActivation | HalfActivation):
                activations[weight] = quantiser
                module.set_submodule(quantiser_name(layer.name), nn.Identity())
            else:
                left[f"input of {layer.name}"] = f"ONNX has no numbers of the scheme {layer.activation_format.scheme!r}"
    program, _ = capture_program(module, example)
    with quiet():
        converted = torch.onnx.export(program, (), dynamo=True, verbose=False, opset_version=opset)
    if converted is None:
        raise TrimtabError("torch.onnx returned no model")
    return insert_qdq(converted.model_proto, weights, activations, left)
