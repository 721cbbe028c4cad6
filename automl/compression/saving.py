"""A compressed network as one safetensors file, and back; nothing in the file is run.

A weight that is sparse or quantised stands under its name as the bytes that it is stored in (`packing`), uint8
[`LayerSpec.weight_bytes`]; so all parameters take `ModelGraph.weight_bytes`. All else is as in the module's state dict.
Where a policy asks for few zeros, the smallest storage may have no index of them; then the mask stands beside, as bits,
under `NAME.mask`: fine-tuning needs it, inference does not. The metadata names the method that found the ranges of each
quantised layer. Shapes and formats follow from the policy, which the file does not hold.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from torch import Tensor, fx, nn

from automl.compression.packing import pack_weights, unpack_weights
from automl.compression.quantisation import WEIGHT_METHODS, Quantised, check_method, dequantise, quantise
from automl.compression.quantisation.base import Side
from automl.compression.quantisation.granularity import join, split
from automl.compression.sites import find_sites
from automl.compression.structure import build, wanted
from automl.compression.treatments import Compressed
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph
from search_spaces.layers import LayerSpec
from search_spaces.number_formats import NumberFormat
from search_spaces.policy import LayerPolicy

MASK = ".mask"


def to_bytes(compressed: Compressed) -> bytes:
    """The network as the content of a safetensors file.

    Raises:
        InputError: a weight is not what its codes or its mask say.
    """
    tensors, methods = state_of(compressed.module), {}
    for layer, name in _treated(compressed.module, compressed.graph):
        weight, mask, quantised = tensors[name], compressed.masks.get(layer.name), compressed.weights.get(layer.name)
        if quantised is not None and not torch.equal(weight, quantised.values):
            raise InputError(
                f"layer {layer.name!r} has other weights than its codes stand for; train it with `fine_tune`, which "
                "finds them anew"
            )
        codes, side = (weight, None) if quantised is None else (quantised.codes.cpu(), quantised.side)
        packed = pack_weights(codes, layer.weight_format, layer.sparsity, mask=mask, side=side)
        tensors[name] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
        if quantised is not None:
            methods[layer.name] = quantised.method
        if mask is not None and _lacks_index(layer):
            tensors[name + MASK] = torch.from_numpy(np.packbits(mask.cpu().numpy()))
    return safetensors.torch.save(tensors, methods or None)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's state dict as safetensors takes it: contiguous copies on the CPU that share no memory."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}


def from_bytes(
    content: bytes,
    network: PrunableNetwork,
    units: Mapping[str, npt.ArrayLike],
    layers: Mapping[str, LayerPolicy],
    file: str,
) -> Compressed:
    """The network that `to_bytes` wrote.

    Args:
        content: of the file.
        network, units, layers: what was compressed and how, see `structure.build`.
        file: its name, for messages.

    Raises:
        InputError: the policy does not fit the network, or the content is damaged or another network's.
    """
    module, graph = build(network, units, layers), wanted(network.graph, units, layers)
    try:
        tensors = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise InputError(f"{file} is damaged: {error}") from None
    methods = _metadata(content)
    masks, weights = {}, {}
    for layer, name in _treated(module, graph):
        try:
            values, mask, quantised = _unpack(layer, tensors.pop(name, None), tensors.pop(name + MASK, None), methods)
        except InputError as error:
            raise InputError(f"{file} is damaged or belongs to another architecture, see {name!r}: {error}") from None
        tensors[name] = values
        if mask is not None:
            masks[layer.name] = mask
        if quantised is not None:
            weights[layer.name] = quantised
    _check(tensors, module.state_dict(), file)
    module.load_state_dict(tensors)
    return Compressed(module, graph, masks, weights)


def _treated(module: fx.GraphModule, graph: ModelGraph) -> Iterator[tuple[LayerSpec, str]]:
    """The layers that are sparse or quantised, and the names of their weights."""
    layers = {layer.name: layer for layer in graph.layers if layer.sparsity or layer.weight_format}
    for name, site in find_sites(module, layers).items():
        yield layers[name], site.weight


def _lacks_index(layer: LayerSpec) -> bool:
    """Whether the zeros of a sparse layer are among its stored weights, where nothing tells them from others."""
    return layer.sparsity is not None and layer.stored.form == "dense"


def _unpack(
    layer: LayerSpec, stored: Tensor | None, bits: Tensor | None, methods: Mapping[str, str]
) -> tuple[Tensor, Tensor | None, Quantised | None]:
    """Values, mask and codes of a layer's weight."""
    shape, format = layer.weight_shape, layer.weight_format
    found = unpack_weights(_octets(stored, "the weight").tobytes(), shape, format, layer.sparsity)
    mask = None if layer.sparsity is None else found.mask
    if _lacks_index(layer):
        octets = _octets(bits, "the mask")
        if len(octets) != -(-layer.weights // 8):
            raise InputError(
                f"the mask of {layer.weights} weights takes {-(-layer.weights // 8)} bytes, got {len(octets)}"
            )
        mask = torch.from_numpy(np.unpackbits(octets, count=layer.weights)).reshape(shape).bool()
        if int(mask.sum()) != layer.nonzeros:
            raise InputError(f"the mask leaves {int(mask.sum())} weights, the policy {layer.nonzeros}")
    if format is None:
        return found.weights, mask, None
    codes = found.weights
    if mask is not None and format.zero:
        codes = torch.where(mask, codes, _code_of_zero(format, found.side, shape))
    method = methods.get(layer.name, "min_max")
    check_method(method, WEIGHT_METHODS)
    values = dequantise(codes, found.side, format, mask)
    return values, mask, Quantised(values, codes, found.side, format, mask, method)


def _code_of_zero(format: NumberFormat, side: Side, shape: Sequence[int]) -> Tensor:
    """Broadcastable to the weight: an index leaves such codes out."""
    if "zero_point" not in side:
        return quantise(torch.zeros(1, 1), replace(format, granularity="tensor")).codes
    rows = split(torch.zeros(tuple(shape), dtype=torch.int64), format.granularity)
    return join(side["zero_point"][:, None].expand_as(rows), shape)


def _octets(tensor: Tensor | None, what: str) -> npt.NDArray[np.uint8]:
    if tensor is None or tensor.dtype != torch.uint8 or tensor.ndim != 1:
        found = "none" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
        raise InputError(f"{what} is stored as uint8 [bytes], got {found}")
    return tensor.numpy()


def _metadata(content: bytes) -> dict[str, str]:
    """Of a safetensors file that is valid."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    found: dict[str, str] = header.get("__metadata__") or {}
    return found


def _check(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], file: str) -> None:
    """InputError where they are not the tensors of that module."""
    missing = sorted(expected.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        odd = f"lacks {missing[0]!r}" if missing else f"has the unknown {unknown[0]!r}"
        raise InputError(f"{file} belongs to another architecture: it {odd}")
    for name, tensor in expected.items():
        found = tensors[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise InputError(
                f"{file} belongs to another architecture: {name!r} is {found.dtype} {list(found.shape)}, "
                f"expected {tensor.dtype} {list(tensor.shape)}"
            )
