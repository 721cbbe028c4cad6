"""Where a network's weights stand in an ONNX model that torch wrote of it, and which nodes read what."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from search_spaces.errors import InputError, did_you_mean


@dataclass(frozen=True, eq=False)
class Site:
    """Where a weight stands in a model.

    Attributes:
        initializer: its name there.
        transposed: whether it is [in, out].
        factor: of each output channel, float32 [out]; None where the values are as they were.
    """

    initializer: str
    transposed: bool = False
    factor: Tensor | None = None


def locate(graph: onnx.GraphProto, name: str, values: Tensor) -> Site:
    """Find a weight: under its name, where the exporter may have folded batch norm into it, or transposed under another
    name, as the exporter does with linear layers on sequences.

    Args:
        graph: the model's.
        name: of the parameter.
        values: float32 [out, ...] that it has.

    Raises:
        InputError: it is not there, or with other values.
    """
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    if name in initializers:
        held = torch.from_numpy(numpy_helper.to_array(initializers[name]).copy())
        factor = _factor(held, values) if held.shape == values.shape else None
        if factor is None:
            raise InputError(
                f"the model's weight {name!r} is not the quantised one, nor that times a factor for each output "
                "channel; export the network with its quantised weights"
            )
        return Site(name, factor=None if bool((factor == 1).all()) else factor)
    for tensor in initializers.values() if values.ndim == 2 else ():
        alike = tuple(tensor.dims) == tuple(values.T.shape) and tensor.data_type == TensorProto.FLOAT
        if alike and np.array_equal(numpy_helper.to_array(tensor), values.T.numpy()):
            return Site(tensor.name, transposed=True)
    raise InputError(f"the model has no weight {name!r}, nor its values transposed{did_you_mean(name, initializers)}")


def _factor(held: Tensor, values: Tensor) -> Tensor | None:
    """float32 [out] with held = values * factor up to rounding; None where there is none."""
    if torch.equal(held, values):
        return torch.ones(len(values))
    ours, theirs = values.flatten(1).double(), held.flatten(1).double()
    energy = ours.square().sum(1)
    factor = torch.where(energy > 0, (ours * theirs).sum(1) / energy, 1.0)
    error = (ours * factor[:, None] - theirs).abs().amax(1)
    return factor.float() if bool((error <= 1e-5 * theirs.abs().amax(1)).all()) else None


def find_readers(
    graph: onnx.GraphProto, weights: Mapping[str, str], names: Mapping[str, object]
) -> dict[tuple[int, str], str]:
    """(place of a node among all, a tensor that it reads) -> one of the names: that of the weight which the node reads
    beside its first input, or that of the tensor itself.

    Args:
        graph: the model's.
        weights: initializer -> parameter, where the names differ.
        names: of weights and tensors.

    Raises:
        InputError: a name that no node reads.
    """
    # a tensor that is a weight, or a weight transposed -> the weight
    layers = {tensor.name: weights.get(tensor.name, tensor.name) for tensor in graph.initializer}
    found: dict[tuple[int, str], str] = {}
    for place, node in enumerate(graph.node):
        if node.op_type == "Transpose" and node.input[0] in layers:
            layers[node.output[0]] = layers[node.input[0]]
            continue
        own = next((layers[read] for read in node.input if layers.get(read) in names), None)
        for read in dict.fromkeys(node.input):
            if read and read not in layers:
                key = own if own is not None and read == node.input[0] else read
                if key in names:
                    found[place, read] = key
    for name in names:
        if name not in found.values():
            known = {read for node in graph.node for read in node.input}
            raise InputError(
                f"no node of the model reads a tensor, or has a weight, {name!r}{did_you_mean(name, known)}"
            )
    return found
