"""The captured network as plain data, and what a policy does to its shapes by arithmetic alone.

Applying a policy never has to know whether it meets a residual sum, a concatenation or a shuffle: every dimension that
shrinks is an `Extent`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import prod

from search_spaces.errors import InputError, did_you_mean
from search_spaces.layers import FLOAT32_BITS, FLOAT32_BYTES, LayerSpec
from search_spaces.operators import Operator
from search_spaces.policy import CompressionPolicy, LayerPolicy


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Channels that can only be removed together, over all layers they reach. A unit is one such set of channels.

    Attributes:
        name: the first layer that produces its channels; "name#2" where one layer produces several groups.
        width: number of units.
        producers: layers whose output channels belong to it (convolution and linear, not depthwise).
        carriers: layers that hand the channels on one by one (depthwise convolution, batch norm).
        consumers: layers whose input channels belong to it, in execution order.
    """

    name: str
    width: int
    producers: tuple[str, ...]
    carriers: tuple[str, ...]
    consumers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Channels that stay as they are, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class ModelGraph:
    """A network: every operator and edge, its layers, and the channel groups that can be pruned.

    Attributes:
        full_operators: every operator in execution order, with the shapes of the uncompressed network.
        full_layers: the convolution and linear layers in execution order, as they stand in it.
        groups: the channel groups that can be pruned, in the order of their first producer.
        refusals: the channels that cannot, with the reason.
        input_shape: of one image.
        kept: units that each group keeps, in the order of `groups`.
        digest: SHA-256 of the uncompressed network's structure.
        bits: (layer, bits of its weights, bits of what it reads) of the layers that are not float32 throughout.
    """

    full_operators: tuple[Operator, ...]
    full_layers: tuple[LayerSpec, ...]
    groups: tuple[ChannelGroup, ...]
    refusals: tuple[Refusal, ...]
    input_shape: tuple[int, ...]
    kept: tuple[int, ...]
    digest: str
    bits: tuple[tuple[str, int, int], ...] = ()

    @classmethod
    def build(
        cls,
        operators: Sequence[Operator],
        layers: Sequence[LayerSpec],
        groups: Sequence[ChannelGroup],
        refusals: Sequence[Refusal],
        input_shape: Sequence[int],
    ) -> "ModelGraph":
        """The uncompressed graph, with its digest."""
        structure = [[asdict(item) for item in part] for part in (operators, layers, groups)]
        digest = hashlib.sha256(json.dumps([*structure, list(input_shape)], sort_keys=True).encode()).hexdigest()
        kept = tuple(group.width for group in groups)
        return cls(tuple(operators), tuple(layers), tuple(groups), tuple(refusals), tuple(input_shape), kept, digest)

    def layer(self, name: str) -> LayerSpec:
        """The layer of that name; InputError where there is none."""
        try:
            return self._layer_by_name[name]
        except KeyError:
            raise InputError(
                f"the network has no convolution or linear layer {name!r}{did_you_mean(name, self._layer_by_name)}"
            ) from None

    def kept_units(self, policy: CompressionPolicy) -> tuple[int, ...]:
        """Units each group keeps under the policy: `max(1, round(keep * width))`, groups it does not name whole.

        Raises:
            InputError: made for another model, an unknown or refused layer, or two ratios for one group.
        """
        if policy.model is not None and policy.model != self.digest:
            raise InputError(
                f"the policy was made for another model (digest {policy.model[:12]}, this one {self.digest[:12]}); "
                "search again, or set its 'model' to null to try it all the same"
            )
        kept = [group.width for group in self.groups]
        said: dict[int, str] = {}
        for name, layer in policy.layers.items():
            if layer.keep is None:
                continue
            index = self._group_index.get(name)
            if index is None:
                index = self._resolve(name)
            units = max(1, round(layer.keep * self.groups[index].width))
            if index in said and kept[index] != units:
                raise InputError(
                    f"layers {said[index]!r} and {name!r} share their channels but keep {kept[index]} and {units} of "
                    "them; give one ratio for both"
                )
            kept[index] = units
            said[index] = name
        return tuple(kept)

    def apply(self, policy: CompressionPolicy) -> "ModelGraph":
        """The graph of the compressed network: counts, shapes and bytes, without touching a tensor.

        Raises:
            InputError: see `kept_units` and `layer_bits`.
        """
        return replace(self, kept=self.kept_units(policy), bits=self.layer_bits(policy))

    def with_kept(self, kept: Sequence[int]) -> "ModelGraph":
        """The graph where group i keeps kept[i] units; bits stay as they are."""
        return replace(self, kept=tuple(kept))

    def layer_bits(self, policy: CompressionPolicy) -> tuple[tuple[str, int, int], ...]:
        """What `bits` is under the policy: layers in execution order.

        Raises:
            InputError: bits for a layer that the network does not have; a channel group is none.
        """
        named = {name: layer for name, layer in policy.layers.items() if layer.weight_bits or layer.activation_bits}
        for name in named:
            self.layer(name)
        bits = (
            (spec.name, named[spec.name].weight_bits or FLOAT32_BITS, named[spec.name].activation_bits or FLOAT32_BITS)
            for spec in self.full_layers
            if spec.name in named
        )
        return tuple(entry for entry in bits if entry[1:] != (FLOAT32_BITS, FLOAT32_BITS))

    def policy(self, kept: Sequence[int] | None = None) -> CompressionPolicy:
        """The policy that keeps kept[i] units of group i (by default what this graph keeps), with this graph's bits."""
        counts = self.kept if kept is None else kept
        layers = {
            group.name: LayerPolicy(keep=units / group.width) for group, units in zip(self.groups, counts, strict=True)
        }
        for name, weight_bits, activation_bits in self.bits:
            layer = layers.get(name, LayerPolicy())
            layers[name] = replace(layer, weight_bits=weight_bits, activation_bits=activation_bits)
        return CompressionPolicy(layers, self.digest)

    def real_macs(self, kept: Sequence[float]) -> float:
        """MACs for unrounded numbers of units, the quantity that AMC's Algorithm 1 bounds."""
        total = 0.0
        for spec in self.full_layers:
            inputs = spec.in_extent.real_size(kept)
            outputs = spec.out_extent.real_size(kept)
            groups = inputs if spec.depthwise else spec.groups
            total += inputs / groups * outputs * prod(spec.kernel) * spec.positions
        return total

    @cached_property
    def layers(self) -> tuple[LayerSpec, ...]:
        """The convolution and linear layers in execution order, as they stand after the policy."""
        bits = {name: each for name, *each in self.bits}
        layers = []
        for spec in self.full_layers:
            if spec.name in bits:
                weight_bits, activation_bits = bits[spec.name]
                spec = replace(spec, weight_bits=weight_bits, activation_bits=activation_bits)
            if not (spec.in_extent.terms or spec.out_extent.terms):
                layers.append(spec)
                continue
            inputs = spec.in_extent.size(self.kept)
            outputs = spec.out_extent.size(self.kept)
            groups = inputs if spec.depthwise else spec.groups
            layers.append(replace(spec, in_channels=inputs, out_channels=outputs, groups=groups))
        return tuple(layers)

    @cached_property
    def operators(self) -> tuple[Operator, ...]:
        """Every operator in execution order, with the shapes it has after the policy."""
        return tuple(
            operator
            if operator.axis is None or not operator.extent.terms
            else replace(
                operator,
                shape=(
                    *operator.shape[: operator.axis],
                    operator.extent.size(self.kept),
                    *operator.shape[operator.axis + 1 :],
                ),
            )
            for operator in self.full_operators
        )

    @property
    def macs(self) -> int:
        """Multiply-accumulates of convolution and linear layers for one image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def params(self) -> int:
        """Weights, biases, batch-norm affine terms and free parameters."""
        others = sum(
            operator.fixed_params
            + (operator.channel_params * operator.extent.size(self.kept) if operator.channel_params else 0)
            for operator in self.full_operators
        )
        return sum(layer.params for layer in self.layers) + others

    @property
    def weight_bytes(self) -> int:
        """Bytes of the parameters: weights of layers packed in their bits, all others in float32."""
        packed = sum(layer.weight_bytes - layer.weights * FLOAT32_BYTES for layer in self.layers) if self.bits else 0
        return self.params * FLOAT32_BYTES + packed

    @cached_property
    def _layer_by_name(self) -> Mapping[str, LayerSpec]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def _group_index(self) -> Mapping[str, int]:
        return {group.name: index for index, group in enumerate(self.groups)}

    def _resolve(self, name: str) -> int:
        """Index of the one group that the output channels of the layer belong to."""
        for refusal in self.refusals:
            if refusal.name == name:
                raise InputError(f"the channels of {name!r} cannot be pruned: {refusal.reason}")
        if name not in self._layer_by_name:
            known = [*self._group_index, *self._layer_by_name]
            raise InputError(f"the network has no layer {name!r}{did_you_mean(name, known)}")
        extent = self.layer(name).out_extent
        if len(extent.terms) != 1 or extent.fixed:
            names = ", ".join(repr(self.groups[group].name) for group, _ in extent.terms) or "none that can be pruned"
            raise InputError(f"the channels of {name!r} belong to several channel groups: {names}; name those instead")
        return extent.terms[0][0]
