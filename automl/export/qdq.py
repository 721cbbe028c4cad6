"""Quantisation in ONNX: QuantizeLinear and DequantizeLinear nodes on a float graph, from scales that are given.

A weight becomes integers and a DequantizeLinear that gives its float values under its old name; what a layer reads goes
through QuantizeLinear and DequantizeLinear. Engines turn such pairs into integer arithmetic, and what they compute is
what the fake-quantised network in torch computes.

| numbers | become |
|---|---|
| symmetric, asymmetric, binary, ternary; activations of "dorefa" | the smallest ONNX integers that hold them |
| groups of weights | blocks of DequantizeLinear (opset 21) |
| fp16, bf16 | such tensors, and a Cast |
| power_of_two, codebook, weights of "dorefa" | float values: ONNX has no such numbers |

Integers are of 4 (weights alone), 8 and 16 bits, 4 and 16 from opset 21 on. Where activations use fewer codes than
their integers have, a Clip before QuantizeLinear sees to it. Where the exporter folded batch norm into a weight, its
scales take the factor.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from automl.compression.quantisation import ActivationQuantiser, Quantised
from automl.compression.quantisation.activations import HalfActivation, UniformActivation
from automl.compression.quantisation.half import DTYPES
from automl.compression.quantisation.uniform import middle
from automl.export.onnx_sites import Site, find_readers, locate
from search_spaces.errors import InputError
from search_spaces.number_formats import group_size

FLOAT = "trimtab.float"
"""Key of the model's metadata under which stands what was left in float32, and why: a JSON object."""

LEAST_OPSET = 13
"""The first with scales by channel."""

WIDE_OPSET = 21
"""The first with integers of 4 and 16 bits and with blocks; its IR version is `WIDE_IR`."""

WIDE_IR = 10
INTEGERS = ("symmetric", "asymmetric", "binary", "ternary")
"""Schemes of weights that become integers."""

_HALF = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_INTEGERS = {
    (4, True): TensorProto.INT4,
    (4, False): TensorProto.UINT4,
    (8, True): TensorProto.INT8,
    (8, False): TensorProto.UINT8,
    (16, True): TensorProto.INT16,
    (16, False): TensorProto.UINT16,
}
"""By bits, and whether they are signed."""


def insert_qdq(
    model: onnx.ModelProto,
    weights: Mapping[str, Quantised | Tensor],
    activations: Mapping[str, ActivationQuantiser],
    left: Mapping[str, str] = MappingProxyType({}),
) -> onnx.ModelProto:
    """Quantise a float model; the one given is not changed. `left_in_float` tells what ONNX cannot say.

    Args:
        model: as `torch.onnx` writes it, of the network with quantised weights and without quantisers of activations.
        weights: by name of the parameter; its initializer may be transposed under another name, or have a factor for
            each output channel. What cannot be integers stays in float32, as does a weight given as float values.
        activations: by name of a weight, for what its layers read; or by name of a tensor, for all that read it. What
            cannot be integers stays as it is: leave its quantiser in the float graph.
        left: what else stays in float32, and why.

    Raises:
        InputError: an opset before 13, a name that the model does not have, or a weight of other values.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 0)
    if opset < LEAST_OPSET:
        raise InputError(
            f"quantisation by channel needs ONNX opset {LEAST_OPSET}, the model has {opset}; export it anew"
        )
    sites = {
        name: locate(copy.graph, name, given.values if isinstance(given, Quantised) else given)
        for name, given in weights.items()
    }
    readers = find_readers(copy.graph, {site.initializer: name for name, site in sites.items()}, activations)
    writer = _Writer(copy, opset, left)
    for name, given in weights.items():
        if isinstance(given, Quantised):
            writer.weight(name, given, sites[name])
    for (place, tensor), key in readers.items():
        writer.activation(place, tensor, key, activations[key])
    return writer.finished()


def left_in_float(model: onnx.ModelProto) -> dict[str, str]:
    """Of a model that `insert_qdq` gave: what was left in float32 -> the reason."""
    found = {entry.key: entry.value for entry in model.metadata_props}
    reasons: dict[str, str] = json.loads(found.get(FLOAT, "{}"))
    return reasons


@dataclass(frozen=True, eq=False)
class _Integers:
    """Numbers as scale * (integer - zero point), and what bits they need."""

    scale: Tensor
    zero_point: Tensor
    bits: int
    signed: bool

    def container(self, opset: int) -> int:
        """Bits of the smallest integers that hold them."""
        known = (4, 8, 16) if opset >= WIDE_OPSET else (8,)
        for bits in known:
            if bits >= self.bits:
                return bits
        raise _NotInOnnxError(f"ONNX opset {opset} has no integers of {self.bits} bits")


class _NotInOnnxError(Exception):
    """Why numbers stay in float32."""


class _Writer:
    """A model while nodes are added to it."""

    def __init__(self, model: onnx.ModelProto, opset: int, left: Mapping[str, str]) -> None:
        self._model, self._graph, self._opset = model, model.graph, opset
        self._first: list[onnx.NodeProto] = []
        self._before: dict[int, list[onnx.NodeProto]] = {}
        self._reasons = dict(left)

    def weight(self, name: str, quantised: Quantised, site: Site) -> None:
        """Put integers in place of a weight, where there are such."""
        try:
            if quantised.format.scheme in _HALF:
                self._half_weight(quantised, site)
            else:
                self._integer_weight(quantised, site)
        except _NotInOnnxError as reason:
            self._reasons[name] = str(reason)

    def activation(self, place: int, tensor: str, key: str, quantiser: ActivationQuantiser) -> None:
        """Have the node at that place read a tensor quantised."""
        stem = f"{tensor}_for_{place}"
        try:
            if isinstance(quantiser, HalfActivation):
                nodes = self._half_activation(tensor, stem, quantiser)
            elif isinstance(quantiser, UniformActivation):
                nodes = self._integer_activation(tensor, stem, quantiser)
            else:
                raise _NotInOnnxError(f"ONNX has no numbers of the scheme {quantiser.format.scheme!r}")
        except _NotInOnnxError as reason:
            self._reasons[key] = str(reason)
            return
        self._before.setdefault(place, []).extend(nodes)
        reader = self._graph.node[place]
        for index, read in enumerate(reader.input):
            if read == tensor:
                reader.input[index] = f"{stem}_quantised"

    def finished(self) -> onnx.ModelProto:
        """The model, its nodes in topological order."""
        nodes = list(self._first)
        for place, node in enumerate(self._graph.node):
            nodes += [*self._before.get(place, ()), node]
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        if self._opset >= WIDE_OPSET:
            self._model.ir_version = max(self._model.ir_version, WIDE_IR)
        kept = {entry.key: entry.value for entry in self._model.metadata_props}
        helper.set_model_props(self._model, kept | {FLOAT: json.dumps(self._reasons, sort_keys=True)})
        return self._model

    def _half_weight(self, quantised: Quantised, site: Site) -> None:
        if site.factor is not None:
            raise _NotInOnnxError(f"batch norm was folded into numbers of {quantised.format.scheme}")
        name, codes = site.initializer, quantised.codes.T if site.transposed else quantised.codes
        data = codes.numpy().astype(np.uint16).tobytes()
        self._remove(name)
        kind = _HALF[quantised.format.scheme]
        self._graph.initializer.append(helper.make_tensor(f"{name}_half", kind, codes.shape, data, raw=True))
        self._first.append(helper.make_node("Cast", [f"{name}_half"], [name], f"{name}_cast", to=TensorProto.FLOAT))

    def _integer_weight(self, quantised: Quantised, site: Site) -> None:
        integers, form = _integers_of(quantised)
        dtype = _dtype(form.container(self._opset), form.signed)
        outputs, sets, name = len(integers), form.scale.numel(), site.initializer
        blocks = sets // outputs if sets > outputs else 0
        if blocks and self._opset < WIDE_OPSET:
            raise _NotInOnnxError(f"ONNX opset {self._opset} has no blocks")
        scale, zero_point = form.scale, form.zero_point
        if site.factor is not None:
            scale = scale.reshape(-1, max(blocks, 1)) * site.factor[:, None]
            zero_point = zero_point.reshape(-1, max(blocks, 1)).expand_as(scale)
        # [out, blocks], [out] or a single number; the integers are a matrix where there are blocks
        sides = (outputs, blocks) if blocks else (outputs,) if scale.numel() > 1 else ()
        parts = [integers.flatten(1) if blocks else integers, scale.reshape(sides), zero_point.reshape(sides)]
        if site.transposed:
            parts = [part.T if part.ndim == 2 else part for part in parts]
        self._remove(name)
        inputs = [
            self._constant(f"{name}_{role}", part.numpy().astype(kind))
            for role, part, kind in zip(
                ("codes", "scale", "zero_point"), parts, (dtype, np.float32, dtype), strict=True
            )
        ]
        output = f"{name}_blocks" if blocks and integers.ndim > 2 else name
        node = helper.make_node("DequantizeLinear", inputs, [output], f"{name}_dequantise")
        if sides:
            node.attribute.append(helper.make_attribute("axis", int(site.transposed) ^ int(blocks > 0)))
        if blocks:
            node.attribute.append(helper.make_attribute("block_size", group_size(quantised.format.granularity)))
        self._first.append(node)
        if output != name:
            shape = self._constant(f"{name}_shape", np.array(integers.shape, np.int64))
            self._first.append(helper.make_node("Reshape", [output, shape], [name], f"{name}_reshape"))

    def _half_activation(self, tensor: str, stem: str, quantiser: HalfActivation) -> list[onnx.NodeProto]:
        scheme = quantiser.format.scheme
        most = float(torch.finfo(DTYPES[scheme]).max)
        return [
            self._clip(tensor, stem, -most, most),
            helper.make_node("Cast", [f"{stem}_clipped"], [f"{stem}_half"], f"{stem}_narrow", to=_HALF[scheme]),
            helper.make_node("Cast", [f"{stem}_half"], [f"{stem}_quantised"], f"{stem}_widen", to=TensorProto.FLOAT),
        ]

    def _integer_activation(self, tensor: str, stem: str, quantiser: UniformActivation) -> list[onnx.NodeProto]:
        signed, bits = quantiser.format.scheme == "symmetric", quantiser.format.bits
        shift = middle(bits) if signed else 0
        form = _Integers(quantiser.scale, quantiser.zero_point - shift, bits, signed)
        container = max(form.container(self._opset), 8)  # ONNX Runtime 1.31 fails at many operators between those of 4
        zero, scale = int(form.zero_point), float(form.scale)
        nodes, source, used = [], tensor, (quantiser.least - shift, quantiser.most - shift)
        if used != _span(container, signed):
            low, high = ((end - zero) * scale for end in used)
            nodes, source = [self._clip(tensor, stem, low, high)], f"{stem}_clipped"
        sides = [
            self._constant(f"{stem}_scale", form.scale.numpy()),
            self._constant(f"{stem}_zero_point", form.zero_point.numpy().astype(_dtype(container, signed))),
        ]
        codes, output = f"{stem}_codes", f"{stem}_quantised"
        return [
            *nodes,
            helper.make_node("QuantizeLinear", [source, *sides], [codes], f"{stem}_quantise"),
            helper.make_node("DequantizeLinear", [codes, *sides], [output], f"{stem}_dequantise"),
        ]

    def _clip(self, tensor: str, stem: str, low: float, high: float) -> onnx.NodeProto:
        ends = [
            self._constant(f"{stem}_{end}", np.array(value, np.float32))
            for end, value in (("low", low), ("high", high))
        ]
        return helper.make_node("Clip", [tensor, *ends], [f"{stem}_clipped"], f"{stem}_clip")

    def _constant(self, name: str, values: npt.NDArray[np.generic]) -> str:
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def _remove(self, name: str) -> None:
        """From the initializers, and from the inputs, among which old models repeat them."""
        for listed in (self._graph.initializer, self._graph.input):
            for index in reversed(range(len(listed))):
                if listed[index].name == name:
                    del listed[index]


def _integers_of(quantised: Quantised) -> tuple[Tensor, _Integers]:
    """A weight's integers, shaped like it, and what they mean."""
    codes, bits, side = quantised.codes, quantised.format.bits, quantised.side
    match quantised.format.scheme:
        case "symmetric":
            return codes - middle(bits), _signed(side["scale"], bits)
        case "asymmetric":
            return codes, _Integers(side["scale"], side["zero_point"], bits, signed=False)
        case "binary":
            signs = 2 * codes - 1
            return signs if quantised.mask is None else signs * quantised.mask, _signed(side["scale"], 2)
        case "ternary":
            return codes - 1, _signed(side["scale"], 2)
        case scheme:
            raise _NotInOnnxError(f"ONNX has no numbers of the scheme {scheme!r}")


def _signed(scale: Tensor, bits: int) -> _Integers:
    return _Integers(scale, torch.zeros_like(scale, dtype=torch.int64), bits, signed=True)


def _dtype(bits: int, signed: bool) -> npt.DTypeLike:
    found: npt.DTypeLike = helper.tensor_dtype_to_np_dtype(_INTEGERS[bits, signed])
    return found


def _span(bits: int, signed: bool) -> tuple[int, int]:
    low = -(1 << (bits - 1)) if signed else 0
    return low, low + (1 << bits) - 1
