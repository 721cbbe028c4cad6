"""A compressed network as a quantised ONNX model: the float graph, and QDQ nodes from the scales that it was given."""

import copy
from pathlib import Path

import onnx
from torch import Tensor, nn
from torch.export import ExportedProgram

from automl.compression.quantisation import ActivationQuantiser, Quantised
from automl.compression.quantisation.activations import HalfActivation, UniformActivation
from automl.compression.structure import quantiser_name
from automl.compression.treatments import Compressed
from automl.export.onnx_export import save_onnx, to_onnx
from automl.export.qdq import INTEGERS, WIDE_OPSET, insert_qdq, left_in_float
from automl.export.torch_export import Batch, capture_program
from search_spaces.errors import TrimtabError
from search_spaces.number_formats import NumberFormat

_LAYERS = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
_IN_ANOTHER = "its weight is part of another module, which ONNX computes in its own way"
_TOO_COARSE = "ONNX Runtime would round biases to steps of the scale of {}-bit activations, and has no kernels for them"
_ALONE = "ONNX Runtime would round its weights to 8 bits, too"
_LEAST_BITS = 8
"""Of activations that integers stand for."""


def save_network(
    network: Compressed | nn.Module, program: ExportedProgram, path: Path, images: Tensor, batch: Batch
) -> dict[str, str]:
    """Write a network as ONNX: quantised where its policy says so and ONNX can, else in float32.

    Args:
        network: in evaluation mode; of a module alone no codes are known.
        program: of its module.
        path: of the file.
        images: [N, ...] on which the model's answers are compared with torch's.
        batch: how many of them the program takes at a time.

    Returns:
        What stays in float32 although the policy gives it fewer bits: layer, or "input of " and layer -> the reason.

    Raises:
        TrimtabError: the network cannot be translated, or the model computes something else.
    """
    if not isinstance(network, Compressed):
        save_onnx(to_onnx(program), path, network, images, batch)
        return {}
    left: dict[str, str] = {}
    if asked := [layer.name for layer in network.graph.layers if layer.weight_format or layer.activation_format]:
        try:
            model = quantised_onnx(network, images[:1])
            save_onnx(model, path, network.module, images, batch)
            return {name.removesuffix(".weight"): reason for name, reason in left_in_float(model).items()}
        except TrimtabError as error:  # its values still are those that the policy asks for
            left = dict.fromkeys(asked, str(error))
    save_onnx(to_onnx(program), path, network.module, images, batch)
    return left


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
            if not isinstance(quantiser, UniformActivation | HalfActivation):
                left[f"input of {layer.name}"] = f"ONNX has no numbers of the scheme {layer.activation_format.scheme!r}"
            elif quantiser.format.bits < _LEAST_BITS:
                left[f"input of {layer.name}"] = _TOO_COARSE.format(quantiser.format.bits)
            elif isinstance(quantiser, UniformActivation) and not _has_integers(layer.weight_format):
                left[f"input of {layer.name}"] = _ALONE
            else:
                activations[weight] = quantiser
                module.set_submodule(quantiser_name(layer.name), nn.Identity())
    program, _ = capture_program(module, example)
    return insert_qdq(to_onnx(program, opset), weights, activations, left)


def _has_integers(weights: NumberFormat | None) -> bool:
    return weights is not None and weights.scheme in INTEGERS
