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
from search_spaces.factorisations import INPUT_MATRIX, factors
from search_spaces.layers import FIXED, FLOAT32_BYTES, LayerSpec
from search_spaces.operators import Block, Operator, Sizes, with_input_factor
from search_spaces.policy import CompressionPolicy, LayerPolicy
from search_spaces.resolution import Resolution, text


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
        treatments: (layer, what is done to it beside pruning) in execution order.
        removed: residual blocks that are left out.
        resolutions: the whole network at each resolution of its input that is known, its own first; empty where no
            other one is.
    """

    full_operators: tuple[Operator, ...]
    full_layers: tuple[LayerSpec, ...]
    groups: tuple[ChannelGroup, ...]
    refusals: tuple[Refusal, ...]
    input_shape: tuple[int, ...]
    kept: tuple[int, ...]
    digest: str
    treatments: tuple[tuple[str, LayerPolicy], ...] = ()
    removed: tuple[Block, ...] = ()
    resolutions: tuple[Sizes, ...] = ()

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
            InputError: see `at`, `kept_units`, `treated`, `left_out`; or what is left of a layer cannot be so sparse.
        """
        whole = self.at(policy.resolution)
        removed = whole.left_out(policy)
        found = replace(whole, kept=self.kept_units(policy), treatments=self.treated(policy), removed=removed)
        gone = {layer for block in removed for layer in block.layers}
        for name, _ in found.treatments:
            if name in gone:
                raise InputError(f"layer {name!r} goes with its block; leave it out of the policy")
        for layer in found.layers if found.treatments else ():
            if layer.sparsity is not None:
                try:
                    layer.sparsity.atoms(layer.weight_shape)
                except InputError as error:
                    raise InputError(f"layer {layer.name!r}: {error}") from None
        return found

    @property
    def resolution(self) -> Resolution | None:
        """Height and width that images are brought to; None where that is the network's own."""
        return (self.input_shape[-2], self.input_shape[-1]) if self.resolution_number else None

    @property
    def resolution_number(self) -> int:
        """Where the graph's resolution stands among `resolutions`; 0 is the network's own."""
        known = [sizes.resolution for sizes in self.resolutions]
        return known.index((self.input_shape[-2], self.input_shape[-1])) if known else 0

    def at(self, resolution: Resolution | None) -> "ModelGraph":
        """The graph where images are brought to that resolution; None leaves it as it is.

        Raises:
            InputError: the network was not captured at it.
        """
        if resolution is None or resolution == self.input_shape[1:]:
            return self
        for sizes in self.resolutions:
            if sizes.resolution == resolution:
                shape = (self.input_shape[0], *resolution)
                return replace(self, full_operators=sizes.operators, full_layers=sizes.layers, input_shape=shape)
        known = [text(sizes.resolution) for sizes in self.resolutions] or [text(self.input_shape[-2:])]
        raise InputError(
            f"the network is known for images of {', '.join(known)} pixels, the policy has {text(resolution)}; capture "
            "it at that resolution, too"
        )

    def knowing(self, others: Sequence["ModelGraph"]) -> "ModelGraph":
        """The graph with those of the same network at other resolutions, for `at`."""
        sizes = [
            Sizes((each.input_shape[-2], each.input_shape[-1]), each.full_operators, each.full_layers)
            for each in ((self, *others) if others else ())
        ]
        return replace(self, resolutions=tuple(sizes))

    def with_kept(self, kept: Sequence[int]) -> "ModelGraph":
        """The graph where group i keeps kept[i] units; all else stays as it is."""
        return replace(self, kept=tuple(kept))

    def treated(self, policy: CompressionPolicy) -> tuple[tuple[str, LayerPolicy], ...]:
        """What `treatments` is under the policy.

        Raises:
            InputError: it treats a layer that the network does not have (a channel group is none), or takes one apart
                in a way that does not fit it.
        """
        named = {name: replace(layer, keep=None) for name, layer in policy.layers.items() if layer.treats}
        if not named:
            return ()
        whole = {spec.name: spec for spec in self.full_layers}
        for name, layer in named.items():
            if name not in whole:
                raise InputError(f"the network has no convolution or linear layer {name!r}{did_you_mean(name, whole)}")
            cropped = whole[name] if layer.kernel is None else whole[name].cropped(layer.kernel)
            if layer.factors is not None:
                if f"{name}_reverse" in whole:
                    raise InputError(f"layer {name!r} reads in both directions and stays whole; leave out its rank")
                factors(cropped, *layer.factors)
        return tuple((name, named[name]) for name in whole if name in named)

    def left_out(self, policy: CompressionPolicy) -> tuple[Block, ...]:
        """The residual blocks that the policy removes.

        Raises:
            InputError: the network has no such block that can go.
        """
        names = [name for name, layer in policy.layers.items() if layer.remove]
        if not names:
            return ()
        from search_spaces.blocks import residual_blocks  # reads graphs

        blocks = {block.name: block for block in residual_blocks(replace(self, removed=()))}
        for name in names:
            if name not in blocks:
                raise InputError(f"no residual block {name!r} of the network can go{did_you_mean(name, blocks)}")
        return tuple(block for name, block in blocks.items() if name in names)

    def policy(self, kept: Sequence[int] | None = None) -> CompressionPolicy:
        """The policy that keeps kept[i] units of group i (by default what this graph keeps) and treats layers as this
        graph does."""
        counts = self.kept if kept is None else kept
        layers = {
            group.name: LayerPolicy(keep=units / group.width) for group, units in zip(self.groups, counts, strict=True)
        }
        for name, layer in self.treatments:
            layers[name] = replace(layer, keep=layers[name].keep if name in layers else None)
        for block in self.removed:
            layers[block.name] = LayerPolicy(remove=True)
        return CompressionPolicy(layers, self.digest, self.resolution)

    def real_macs(self, kept: Sequence[float]) -> float:
        """MACs for unrounded numbers of units, the quantity that AMC's Algorithm 1 bounds."""
        total = 0.0
        for spec in self._full_parts:
            inputs = spec.in_extent.real_size(kept)
            outputs = spec.out_extent.real_size(kept)
            groups = inputs if spec.depthwise else spec.groups
            total += inputs / groups * outputs * prod(spec.kernel) * spec.positions
        return total

    @cached_property
    def layers(self) -> tuple[LayerSpec, ...]:
        """The convolution and linear layers in execution order, as they stand after the policy; in place of one that
        was taken apart its parts."""
        return tuple(spec.shrunk(self.kept) for spec in self._full_parts)

    @cached_property
    def operators(self) -> tuple[Operator, ...]:
        """Every operator in execution order, with the shapes it has after the policy; in place of a layer that was
        taken apart its parts, the last of them under its name."""
        found: dict[str, Operator] = {}
        for operator in self._present:
            if operator.axis is not None and operator.extent.terms:
                before, after = operator.shape[: operator.axis], operator.shape[operator.axis + 1 :]
                operator = replace(operator, shape=(*before, operator.extent.size(self.kept), *after))
            parts = self.parts.get(f"{operator.layer}.{INPUT_MATRIX}")
            if parts is None:
                chain = self._operators_of_parts(operator)
            else:
                chain = with_input_factor(operator, parts[0], found[operator.inputs[0]])
            found |= {each.name: each for each in chain}
        return tuple(found.values())

    def _operators_of_parts(self, operator: Operator) -> list[Operator]:
        """An operator, or those of the parts that its layer was taken apart into."""
        parts = self.parts.get(operator.layer or "")
        if parts is None:
            return [operator]
        chain: list[Operator] = []
        for part in parts:
            last = part is parts[-1]
            channels = part.out_channels
            # of a layer that is called on maps of several sizes a part has one only
            size = operator.shape[1:] if part.output_size == parts[-1].output_size else part.output_size
            shape = (*operator.shape[:-1], channels) if part.kind == "linear" else (channels, *size)
            chain.append(
                replace(
                    operator,
                    name=operator.name if last else f"{operator.name}.{len(chain)}",
                    inputs=(chain[-1].name,) if chain else operator.inputs[:1],
                    shape=operator.shape if last else shape,
                    axis=operator.axis if last else None,
                    extent=operator.extent if last else FIXED,
                    layer=part.name,
                    target="",
                    arguments=(),
                )
            )
        return chain

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
            for operator in self._present
        )
        return sum(layer.params for layer in self.layers) + others

    @property
    def weight_bytes(self) -> int:
        """Bytes of the parameters: weights of layers as they are stored, all others in float32."""
        whole = self.params * FLOAT32_BYTES
        if not self.treatments:
            return whole
        return whole + sum(layer.weight_bytes - layer.weights * FLOAT32_BYTES for layer in self.layers)

    @cached_property
    def _full_parts(self) -> tuple[LayerSpec, ...]:
        """The layers with all channels, as they are treated."""
        if not (self.treatments or self.removed):
            return self.full_layers
        gone = {layer for block in self.removed for layer in block.layers}
        specs = (spec for spec in self.full_layers if spec.name not in gone)
        policies = dict(self.treatments)
        return tuple(
            part for spec in specs for part in self.parts.get(spec.name, (formatted(spec, policies.get(spec.name)),))
        )

    @cached_property
    def _present(self) -> tuple[Operator, ...]:
        """The operators but those of blocks that are left out: who read a sum reads what the branch was added to."""
        gone = {name for block in self.removed for name in (*block.operators, block.sum)}
        inputs = {operator.name: operator.inputs for operator in self.full_operators}
        instead = {block.sum: inputs[block.sum][block.identity] for block in self.removed}

        def source(name: str) -> str:
            while name in instead:
                name = instead[name]
            return name

        return tuple(
            replace(operator, inputs=tuple(map(source, operator.inputs))) if instead else operator
            for operator in self.full_operators
            if operator.name not in gone
        )

    @cached_property
    def parts(self) -> Mapping[str, tuple[LayerSpec, ...]]:
        """With all channels, by name of the layer that was taken apart."""
        whole = {spec.name: spec for spec in self.full_layers} if self.treatments else {}
        return {
            name: factors(formatted(whole[name], policy), *policy.factors)
            for name, policy in self.treatments
            if policy.factors is not None
        }

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
            known = dict.fromkeys([*self._group_index, *self._layer_by_name])
            raise InputError(f"the network has no layer {name!r}{did_you_mean(name, known)}")
        extent = self.layer(name).out_extent
        if len(extent.terms) != 1 or extent.fixed:
            names = ", ".join(repr(self.groups[group].name) for group, _ in extent.terms) or "none that can be pruned"
            raise InputError(f"the channels of {name!r} belong to several channel groups: {names}; name those instead")
        return extent.terms[0][0]


def formatted(spec: LayerSpec, policy: LayerPolicy | None) -> LayerSpec:
    """A layer with the kernel, the zeros and the number formats of a policy; as it is where there is none."""
    if policy is None:
        return spec
    return replace(
        spec if policy.kernel is None else spec.cropped(policy.kernel),
        sparsity=policy.zeros,
        weight_format=policy.weight_format,
        activation_format=policy.activation_format,
    )
