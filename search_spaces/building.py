"""The search space that a config asks for: which dimensions, of which layers, in which steps."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import lcm
from typing import Any

from search_spaces.channel_space import LOWER_BOUND, ChannelSpace
from search_spaces.depth import DEPTH, rows_of_blocks
from search_spaces.errors import InputError
from search_spaces.factorisations import factors, fitting
from search_spaces.graph import ModelGraph
from search_spaces.layers import FLOAT32_BITS, LayerSpec
from search_spaces.policy import LayerPolicy
from search_spaces.resolution import resolutions
from search_spaces.space import RESOLUTION, Decision, SearchSpace, channel_decisions
from search_spaces.sparsity import Sparsity, window_of


@dataclass(frozen=True)
class SpaceOptions:
    """What may be decided.

    Attributes:
        channels: whether channel groups may shrink.
        resolution: sizes that images may be brought to, beside their own: shares of their height and width, or pixels
            of their height (see `search_spaces.resolution`). The network has to be captured at them.
        lower_bound, round_to, keep, protect: see `ChannelSpace.build`.
        weight_bits, activation_bits: choices; None among them stands for float32. Empty where nothing is quantised.
        coupled_bits: whether a layer has one number of bits for its weights and for what it reads.
        kernel: widths that kernels may be cropped to, where they have such a middle; they may stay whole as well.
        depth: the least number of residual blocks that stay of each row of them; None where none goes.
        sparsity: shares of the weights that may be zero, or patterns "N:M"; a layer may stay dense as well.
        pattern: in which they are.
        rank: shares of the full rank that may be kept; a layer may stay whole as well.
        factorisation: of the ranks.
        layers: glob patterns of the layers that have bits, zeros, ranks or kernels decided.
        ends: whether the first and the last layer do; else they have the most bits that the choices know, as HAQ and
            most of the literature leave them, and nothing else.
        tie: groups of layers that are decided on together, such as those of which a sum reads.
    """

    channels: bool = True
    resolution: Sequence[float] = ()
    lower_bound: float = LOWER_BOUND
    round_to: int | None = None
    keep: Sequence[float] = ()
    protect: Sequence[str] = ()
    weight_bits: Sequence[int | None] = ()
    activation_bits: Sequence[int | None] = ()
    coupled_bits: bool = False
    kernel: Sequence[int] = ()
    depth: int | None = None
    sparsity: Sequence[float | str] = ()
    pattern: str = "element"
    rank: Sequence[float] = ()
    factorisation: str = "svd"
    layers: Sequence[str] = ("*",)
    ends: bool = False
    tie: Sequence[Sequence[str]] = ()

    @property
    def bits(self) -> tuple[Sequence[int | None], Sequence[int | None]]:
        """Choices of weights and of activations."""
        return self.weight_bits, self.activation_bits

    def __post_init__(self) -> None:
        if self.coupled_bits and list(self.weight_bits) != list(self.activation_bits):
            raise InputError(
                f"coupled_bits takes one list for both, got weight_bits {list(self.weight_bits)} and activation_bits "
                f"{list(self.activation_bits)}"
            )
        for share in self.rank:
            if not 0.0 < share < 1.0:
                raise InputError(f"a rank is a share of the full one in (0, 1), got {share}")


def build_space(graph: ModelGraph, options: SpaceOptions) -> SearchSpace:
    """The space of a network.

    Raises:
        InputError: an option out of range, a pattern that matches nothing, or nothing to decide on.
    """
    channels = (
        ChannelSpace.build(graph, options.lower_bound, options.round_to, options.protect, options.keep)
        if options.channels
        else ChannelSpace.whole_of(graph)
    )
    decisions = [
        *_resolution(graph, options.resolution),
        *_depth(graph, options.depth),
        *channel_decisions(channels),
        *_Treatments(channels, options).decisions(),
    ]
    fixed = {} if options.ends else _ends(graph, options)
    for decision in decisions:
        if len(decision.choices) == 1:  # nothing to decide, but bits that a layer has all the same
            fixed |= {name: decision.apply(fixed.get(name, LayerPolicy()), 0) for name in decision.targets}
    fixed = {name: policy for name, policy in fixed.items() if policy.treats}
    decisions = [decision for decision in decisions if len(decision.choices) > 1]
    if not decisions:
        raise InputError(
            "there is nothing to decide: give the space channels, bits, sparsity, ranks, kernels, a depth or "
            "resolutions with a choice"
        )
    return SearchSpace(channels, tuple(decisions), fixed)


def _resolution(graph: ModelGraph, asked: Sequence[float]) -> Iterator[Decision]:
    """Of the images, where more than their own was asked for."""
    sizes = resolutions(asked, graph.input_shape)
    for size in sizes:
        graph.at(size)  # refuses one that the network was not captured at
    if sizes:
        yield Decision(RESOLUTION, (), (*sizes, None))


def _depth(graph: ModelGraph, least: int | None) -> Iterator[Decision]:
    """How many blocks stay of each row of them, the first ones; longer rows than the least have a choice."""
    for row in rows_of_blocks(graph) if least is not None else ():
        choices = range(min(least or 0, len(row)), len(row) + 1)
        yield Decision(DEPTH, tuple(block.name for block in row), tuple(choices))


def _ends(graph: ModelGraph, options: SpaceOptions) -> dict[str, LayerPolicy]:
    """The first and the last layer, where bits are decided: the most that the choices know."""
    weights, activations = (max(_bits(choices), key=_precision, default=None) for choices in options.bits)
    most = LayerPolicy(weight_bits=weights, activation_bits=activations)
    names = {graph.full_layers[0].name, graph.full_layers[-1].name}
    return dict.fromkeys(names, most) if most.treats else {}


def _bits(choices: Sequence[int | None]) -> tuple[int | None, ...]:
    """Rising."""
    return tuple(sorted(set(choices), key=_precision))


def _precision(bits: int | None) -> int:
    """Float32 is the most."""
    return FLOAT32_BITS if bits is None else bits


class _Treatments:
    """Decisions on layers, in execution order, those of tied ones once."""

    def __init__(self, channels: ChannelSpace, options: SpaceOptions) -> None:
        self._channels = channels
        self._options = options
        layers = channels.graph.full_layers
        names = [layer.name for layer in layers]
        for pattern in options.layers:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise InputError(f"no layer matches space.layers {pattern!r}; layers: {', '.join(names)}")
        ends = set() if options.ends else {names[0], names[-1]}
        self._layers = [
            layer
            for layer in layers
            if layer.name not in ends and any(fnmatchcase(layer.name, pattern) for pattern in options.layers)
        ]
        self._tied = self._partners(names)

    def _partners(self, names: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        tied: dict[str, tuple[str, ...]] = {}
        for group in self._options.tie:
            for name in group:
                if name not in names:
                    raise InputError(f"space.tie names a layer {name!r}, which the network does not have")
                if name in tied:
                    raise InputError(f"space.tie names layer {name!r} twice")
                tied[name] = tuple(group)
        return tied

    def decisions(self) -> Iterator[Decision]:
        """Those of one layer after those of the layer before it."""
        seen: set[str] = set()
        allowed = {layer.name for layer in self._layers}
        for layer in self._layers:
            if layer.name in seen:
                continue
            targets = tuple(name for name in self._tied.get(layer.name, (layer.name,)) if name in allowed)
            seen.update(targets)
            specs = [each for each in self._layers if each.name in targets]
            for dimension, choices in self._choices(specs):
                yield Decision(dimension, targets, choices)

    def _choices(self, specs: Sequence[LayerSpec]) -> Iterator[tuple[str, tuple[Any, ...]]]:
        options = self._options
        zeros = self._zeros()
        kernels = self._kernels(specs)
        cropped = [spec if kernel is None else spec.cropped(kernel) for spec in specs for kernel in kernels]
        ranks = self._ranks(specs, cropped, [each for each in zeros if window_of(each.pattern)])
        yield "kernel", kernels
        yield "rank", ranks
        shapes = {shape for spec in cropped for shape in self._shapes(spec, ranks)}
        fitting = [(each.pattern, each.share) for each in zeros if all(_fits(each, shape) for shape in shapes)]
        yield "sparsity", (*sorted(set(fitting), key=lambda choice: -choice[1]), None)
        if options.coupled_bits and options.weight_bits:
            yield "bits", _bits(options.weight_bits)
            return
        if options.weight_bits:
            yield "weight_bits", _bits(options.weight_bits)
        if options.activation_bits:
            yield "activation_bits", _bits(options.activation_bits)

    def _kernels(self, specs: Sequence[LayerSpec]) -> tuple[int | None, ...]:
        """Those that every one of the layers can be cropped to, and all of it."""
        fitting = (kernel for kernel in self._options.kernel if all(_crops(spec, kernel) for spec in specs))
        return (*sorted(set(fitting)), None)

    def _zeros(self) -> list[Sparsity]:
        """The patterns and shares that were asked for."""
        found = []
        for asked in self._options.sparsity:
            window = window_of(asked) if isinstance(asked, str) else None
            if isinstance(asked, str) and (window is None or not 0 < window[0] < window[1]):
                raise InputError(f"space.sparsity holds shares of zeros, or patterns 'N:M', got {asked!r}")
            share = float(asked) if window is None else 1.0 - window[0] / window[1]
            if share > 0.0:
                found.append(Sparsity(self._options.pattern if window is None else str(asked), share))
        return found

    def _ranks(
        self, specs: Sequence[LayerSpec], cropped: Sequence[LayerSpec], windows: Sequence[Sparsity]
    ) -> tuple[Any, ...]:
        """The lowest first, in multiples of the windows of N:M zeros, which the next part then reads.

        Layers of other shapes have other ranks, so only equal ones can be tied.
        """
        method = self._options.factorisation
        if any(spec.weight_shape != specs[0].weight_shape for spec in specs):
            return (None,)
        step = lcm(*(window[1] for zeros in windows if (window := window_of(zeros.pattern))))
        found = []
        for share in sorted(self._options.rank):
            try:
                full = fitting(specs[0], method).full(specs[0])
                rank = tuple(max(step, step * round(share * each / step)) for each in full)
                for each in cropped:
                    factors(each, method, rank)
            except InputError:  # it cannot be taken apart, or saves nothing
                continue
            choice = (method, rank if len(rank) > 1 else rank[0])
            if choice not in found:
                found.append(choice)
        return (*found, None)

    def _shapes(self, spec: LayerSpec, ranks: Sequence[Any]) -> Iterator[tuple[int, ...]]:
        """Weights of the layer, whole or taken apart, at every size of each of its groups and at the least of all.

        A size is a sum over groups: where every size of each alone is a multiple, all their sums are.
        """
        whole, least = self._channels.whole, self._channels.least
        groups = {group for extent in (spec.in_extent, spec.out_extent) for group, _ in extent.terms}
        kept = [whole, least]
        for group in groups:
            kept += [(*whole[:group], units, *whole[group + 1 :]) for units in self._channels.choices(group)]
        for rank in ranks:
            parts = (spec,) if rank is None else factors(spec, rank[0], _tuple(rank[1]))
            yield from (part.shrunk(units).weight_shape for part in parts for units in kept)


def _tuple(rank: int | tuple[int, ...]) -> tuple[int, ...]:
    return rank if isinstance(rank, tuple) else (rank,)


def _crops(spec: LayerSpec, kernel: int) -> bool:
    try:
        return spec.cropped(kernel).kernel != spec.kernel
    except InputError:
        return False


def _fits(zeros: Sparsity, shape: Sequence[int]) -> bool:
    try:
        zeros.atoms(shape)
    except InputError:
        return False
    return True
