"""The layers of a compressed network that compute in 8-bit integers, and the network that is left around them."""

import copy

import numpy as np
import torch
from torch import nn

from automl.compression.quantisation import Quantised
from automl.compression.quantisation.activations import UniformActivation
from automl.compression.structure import quantiser_name
from automl.compression.treatments import Compressed
from backends.integers import IntegerNetwork, LayerIntegers, why_float
from search_spaces.errors import TrimtabError


def integer_network(compressed: Compressed) -> tuple[nn.Module, IntegerNetwork, dict[str, str]]:
    """What a compiler for 8-bit integers needs.

    Returns:
        The network without the quantisers of what integer layers read; those layers; and why each other layer that is
        quantised computes in float32.
    """
    module = copy.deepcopy(compressed.module)
    formats, layers, left = {}, {}, {}
    for spec in compressed.graph.layers:
        if spec.weight_format is None and spec.activation_format is None:
            continue
        reason = why_float(spec, spec.weight_format, spec.activation_format)
        weight = compressed.weights.get(spec.name)
        if reason is None and weight is None:
            reason = "the codes of its weights are not known"
        if reason is not None or weight is None:
            left[spec.name] = reason or ""
            continue
        name = quantiser_name(spec.name)
        quantiser = module.get_submodule(name)
        if not isinstance(quantiser, UniformActivation):
            raise TypeError(f"a layer that computes in integers reads equal steps, not {type(quantiser).__name__}")
        module.set_submodule(name, nn.Identity())
        formats[spec.name] = (spec.weight_format, spec.activation_format)
        layers[spec.name] = _integers(spec.name, weight, quantiser)
    return module, IntegerNetwork(formats, layers), left


def _integers(name: str, weight: Quantised, quantiser: UniformActivation) -> LayerIntegers:
    """The numbers of a layer; its weights are whole multiples of their scale."""
    outputs = len(weight.values)
    scale = weight.side["scale"].detach().double().reshape(-1, *[1] * (weight.values.ndim - 1))
    steps = torch.where(scale > 0, weight.values.detach().double() / scale, 0.0).round()
    if (steps.abs() > 127).any() or not torch.allclose(steps * scale, weight.values.double(), rtol=1e-5, atol=0.0):
        raise TrimtabError(f"the weights of layer {name!r} are no multiples of their scale that a byte holds")
    return LayerIntegers(
        steps.to(torch.int8).numpy(),
        np.broadcast_to(scale.reshape(-1).float().numpy(), (outputs,)).copy(),
        float(quantiser.scale),
        int(quantiser.zero_point),
        quantiser.least,
        quantiser.most,
    )
