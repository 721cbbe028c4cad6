"""What an operator computes beside its own sum: the affine maps, the residual and the activation fused behind it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from backends.fusion import ACTIVATIONS, IDENTITIES, FusedOperator, permutation
from backends.tvm.kernels.epilogue import IDENTITY, Activation, Epilogue
from backends.tvm.lowering.channels import Channels, pack_channels
from backends.tvm.lowering.plan import Array, Planner, Promise, Tensors
from backends.tvm.lowering.rows import laid_out_like
from backends.tvm.lowering.values import Buffer, Packed, permuted
from search_spaces.operators import Operator, TensorInput

Vectors = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
Affine = Callable[[Tensors, int], Vectors]
"""(scale, shift) [C] of an affine map of C channels."""


@dataclass(frozen=True)
class Tail:
    """The fused tail of one operator.

    Attributes:
        epilogue: what it means for a kernel's code.
        maps: the affine maps, in order.
        permutations: of the dimensions, (before the residual, behind it).
        residual: name of the operator that is added.
    """

    epilogue: Epilogue
    maps: tuple[Affine, ...]
    permutations: tuple[tuple[list[int], ...], tuple[list[int], ...]]
    residual: str | None

    def viewed(self, value: Packed) -> Packed:
        """The operator's value as what follows sees it."""
        for axes in (*self.permutations[0], *self.permutations[1]):
            value = permuted(value, axes)
        return value

    def affine(self, channels: int) -> Callable[[Tensors], Vectors]:
        """All maps in one: promised (scale, shift) [channels]."""

        def vectors(tensors: Tensors) -> Vectors:
            scale, shift = np.ones(channels), np.zeros(channels)
            for affine in self.maps:
                factor, term = affine(tensors, channels)
                scale, shift = scale * factor, shift * factor + term
            return scale, shift

        return vectors

    def residual_operand(self, planner: Planner, like: Packed) -> list[Buffer] | None:
        """The residual's buffer as an operand, laid out as the operator's own output, which is given with any buffer;
        empty where nothing is added, None where it cannot be laid out so."""
        if self.residual is None:
            return []
        value = self.residual_value(planner, like)
        return None if value is None else [value.buffer]

    def residual_value(self, planner: Planner, like: Packed) -> Packed | None:
        """What is added, where there is something; see `residual_operand`."""
        for axes in self.permutations[0]:
            like = permuted(like, axes)
        value = planner.packed(planner.value(self.residual or ""))
        value = None if value is None else laid_out_like(planner, value, like)
        return None if value is None else planner.in_order(value)


def packed_vectors(vectors: Callable[[Tensors], Vectors], channels: Channels, blocks: int, lanes: int) -> list[Promise]:
    """Promises of scale and shift, one value a channel, as [blocks, lanes]."""

    def packed(index: int) -> Promise:
        return lambda tensors: pack_channels(vectors(tensors)[index], channels, blocks, lanes)

    return [packed(0), packed(1)]


def read_tail(planner: Planner, fused: FusedOperator) -> Tail | None:
    """The tail of a fused operator; None where its activations cannot be one."""
    activation: Activation = IDENTITY
    maps: list[Affine] = []
    before: list[list[int]] = []
    behind: list[list[int]] = []
    added = False
    current = fused.head
    for operator in fused.tail:
        if operator.kind in IDENTITIES:
            pass
        elif operator.kind in ("permute", "transpose"):
            (behind if added else before).append(permutation(operator, len(planner.shape(operator))))
        elif operator.kind in ACTIVATIONS:
            found = activation_of(operator)
            merged = None if found is None else activation.then(found)
            if merged is None:
                return None
            activation = merged
        elif fused.residual is not None and not added and fused.residual in operator.inputs:
            added = True
        else:
            maps.append(affine_of(planner, operator, current.name))
        current = operator
    epilogue = Epilogue(fused.residual is not None, activation)
    return Tail(epilogue, tuple(maps), (tuple(before), tuple(behind)), fused.residual)


def activation_of(operator: Operator) -> Activation | None:
    """The activation that an operator is; None where there is none such."""
    kind = operator.kind

    def number(name: str, default: float) -> float:
        value = operator.argument(name)
        return float(value) if isinstance(value, int | float) else default

    if kind == "relu":
        return Activation(low=0.0)
    if kind == "relu6":
        return Activation(low=0.0, high=6.0)
    if kind == "hardtanh":
        return Activation(low=number("min_val", -1.0), high=number("max_val", 1.0))
    if kind in ("clamp", "clip", "clamp_min", "clamp_max"):
        if any(isinstance(operator.argument(name), TensorInput) for name in ("min", "max")):
            return None
        return Activation(low=number("min", -np.inf), high=number("max", np.inf))
    name = {"hardsigmoid": "hard_sigmoid", "hardswish": "hard_swish"}.get(kind, kind)
    if kind == "gelu" and operator.argument("approximate") == "tanh":
        name = "gelu_tanh"
    if kind == "softplus" and (number("beta", 1.0), number("threshold", 20.0)) != (1.0, 20.0):
        return None
    if kind == "elu" and (number("scale", 1.0), number("input_scale", 1.0)) != (1.0, 1.0):
        return None
    try:
        return Activation(kind=name, slope=number("negative_slope", 0.01), alpha=number("alpha", 1.0))
    except ValueError:
        return None


def affine_of(planner: Planner, operator: Operator, source: str) -> Affine:
    """The affine map of channels that an operator applies to the value of `source`; the fusion has seen that it is
    one."""
    if operator.kind == "batch_norm":
        return lambda tensors, _: tensors.batch_norm(operator)
    others = [name for name in operator.inputs if name != source]
    number = operator.argument("other")
    left = operator.argument("self")
    on_left = not isinstance(left, TensorInput) or operator.inputs[left.index] == source

    def constant(tensors: Tensors, channels: int) -> Array:
        array = tensors.constant(others[0]) if others else np.asarray(number)
        return np.broadcast_to(array.reshape(-1).astype(np.float64), (channels,))

    def vectors(tensors: Tensors, channels: int) -> Vectors:
        value = constant(tensors, channels)
        one, zero = np.ones(channels), np.zeros(channels)
        if operator.kind == "add":
            return one, value
        if operator.kind == "mul":
            return value, zero
        if operator.kind == "div":
            return 1.0 / value, zero
        return (one, -value) if on_left and operator.kind == "sub" else (-one, value)

    return vectors


def weights_of(operator: Operator, tail: Tail, outputs: int) -> tuple[Promise, Promise]:
    """Promises of a layer's weight with the tail's scale folded in, [O, ...] float64, and of its bias [O]."""
    affine = tail.affine(outputs)

    def weight(tensors: Tensors) -> Array:
        scale, _ = affine(tensors)
        array, _ = tensors.layer(operator)
        return array * scale.reshape(-1, *[1] * (array.ndim - 1))

    def bias(tensors: Tensors) -> Array:
        scale, shift = affine(tensors)
        _, own = tensors.layer(operator)
        return shift if own is None else own * scale + shift

    return weight, bias
