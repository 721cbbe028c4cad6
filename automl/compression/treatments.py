"""What a policy asks for beside pruning and rank, done to the tensors of a network: weights are made sparse, then
quantised. Each step sees what the one before it left."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from automl.compression.held import Held
from automl.compression.importance.taylor import cross_entropy
from automl.compression.quantisation import (
    METHODS,
    WEIGHT_METHODS,
    Observer,
    Quantised,
    bias_correction,
    quantise,
)
from automl.compression.quantisation.calibration import check_method
from automl.compression.running import Images, RunningNetwork
from automl.compression.sites import Site, find_sites, weight_of
from automl.compression.sparsity import criterion, mask, score_weights
from automl.compression.structure import check_readable, install_quantisers
from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph
from search_spaces.layers import LayerSpec

GRADIENT_BATCH = 64
"""Images whose mean gradient scores weights; their scores are averaged."""


@dataclass(frozen=True)
class SparsityOptions:
    """How the zeros that a policy asks for are chosen.

    Attributes:
        criterion: one of `sparsity.CRITERIA`.
        gradual: share of a run's fine-tuning in which their number grows (see `sparsity.GradualSparsity`); with 0 all
            are chosen before it.
    """

    criterion: str = "magnitude"
    gradual: float = 0.0

    def __post_init__(self) -> None:
        criterion(self.criterion)
        if not 0.0 <= self.gradual <= 1.0:
            raise InputError(f"zeros grow in number in a share of the fine-tuning in [0, 1], got {self.gradual}")


@dataclass(frozen=True)
class QuantisationOptions:
    """How values are chosen for the formats that a policy asks for.

    Attributes:
        weight_range: finds the range of weights; see `quantisation.calibration`.
        activation_range: finds that of activations.
        stochastic_rounding: whether weights are rounded by chance, instead of to the nearest.
        bias_correction: whether biases make up for the mean error of quantised weights.
        seed: of that chance.
    """

    weight_range: str = "min_max"
    activation_range: str = "min_max"
    stochastic_rounding: bool = False
    bias_correction: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_method(self.weight_range, WEIGHT_METHODS)
        check_method(self.activation_range, METHODS)


@dataclass(frozen=True, eq=False)
class Compressed:
    """A compressed network, and what has to stay in force while it is trained further.

    Attributes:
        module: in eval mode, with tensors of its own.
        graph: what arithmetic says of it.
        masks: which weights stay, by layer; of those that are sparse. All do where the zeros are left to fine-tuning.
        weights: codes and scales, by layer; of those that are quantised.
    """

    module: fx.GraphModule
    graph: ModelGraph
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, Quantised] = field(default_factory=dict)


def treat(
    module: fx.GraphModule,
    graph: ModelGraph,
    images: Tensor | None,
    labels: Tensor | None,
    sparsity: SparsityOptions | None,
    options: QuantisationOptions,
    held: Held | None = None,
) -> Compressed:
    """Make the weights of a network sparse, then quantise them and what layers read, in place.

    Args:
        module: the network, pruned and taken apart.
        graph: of the network that is wanted.
        images: calibration images [N, ...]; None where nothing that is wanted needs them.
        labels: of the images; None where nothing that is wanted needs them.
        sparsity: how zeros are chosen; None leaves them to fine-tuning, and the weights of those layers unrounded.
        options: how values are chosen.
        held: what layers of other networks read; see `running`.

    Raises:
        InputError: a layer has no weights of its own, or images or labels are needed.
    """
    treated = [layer for layer in graph.layers if layer.sparsity or layer.weight_format or layer.activation_format]
    sites = find_sites(module, [layer.name for layer in treated])
    masks = _sparsify(module, treated, sites, images, labels, sparsity)
    weights = _quantise(module, treated, sites, masks, options)
    for name, (found, _) in weights.items():
        if sparsity is not None or name not in masks:  # zeros are better chosen among weights that are not rounded yet
            weight_of(module, sites[name]).data.copy_(found.values)
    _calibrate(module, treated, sites, weights, images, options, held)
    return Compressed(module.eval(), graph, masks, {name: found for name, (found, _) in weights.items()})


def _sparsify(
    module: nn.Module,
    layers: Sequence[LayerSpec],
    sites: Mapping[str, Site],
    images: Tensor | None,
    labels: Tensor | None,
    options: SparsityOptions | None,
) -> dict[str, Tensor]:
    """Masks, by layer; what they exclude is set to zero."""
    sparse = {layer.name: layer.sparsity for layer in layers if layer.sparsity is not None}
    weights = {name: weight_of(module, sites[name]) for name in sparse}
    if options is None:
        return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    scores = _scores(module, weights, images, labels, options.criterion)
    masks = {name: mask(scores[name], sparse[name]) for name in sparse}
    for name, weight in weights.items():
        weight.data.masked_fill_(~masks[name], 0.0)
    return masks


def _scores(
    module: nn.Module, weights: Mapping[str, Tensor], images: Tensor | None, labels: Tensor | None, name: str
) -> dict[str, Tensor]:
    """Of the weights, by layer."""
    if not criterion(name).needs_gradient or not weights:
        return score_weights(name, module, weights)
    if images is None or labels is None:
        lacking = "images" if images is None else "labels"
        raise InputError(
            f"the criterion {name!r} of sparsity needs calibration images with labels, got no {lacking}; give both, or "
            "choose 'magnitude'"
        )
    batches = zip(torch.split(images, GRADIENT_BATCH), torch.split(labels, GRADIENT_BATCH), strict=True)
    return score_weights(name, module, weights, batches, lambda outputs, wanted: cross_entropy(outputs, wanted).mean())


def _quantise(
    module: nn.Module,
    layers: Sequence[LayerSpec],
    sites: Mapping[str, Site],
    masks: Mapping[str, Tensor],
    options: QuantisationOptions,
) -> dict[str, tuple[Quantised, Tensor]]:
    """Codes of the weights, and the weights as they are."""
    chance = torch.Generator().manual_seed(options.seed) if options.stochastic_rounding else None
    found = {}
    for layer in layers:
        if layer.weight_format is not None:
            weight = weight_of(module, sites[layer.name]).data
            kept = masks.get(layer.name)
            with _naming(layer.name):
                codes = quantise(weight, layer.weight_format, mask=kept, generator=chance, method=options.weight_range)
            found[layer.name] = codes, weight.clone()
    return found


def _calibrate(
    module: fx.GraphModule,
    layers: Sequence[LayerSpec],
    sites: Mapping[str, Site],
    weights: Mapping[str, tuple[Quantised, Tensor]],
    images: Tensor | None,
    options: QuantisationOptions,
    held: Held | None,
) -> None:
    """Activation quantisers and bias correction, both from one pass over the images."""
    read = {layer.name: layer.activation_format for layer in layers if layer.activation_format is not None}
    means = {name: _Mean() for name in weights if options.bias_correction and _bias(module, sites[name]) is not None}
    if not read and not means:
        return
    if images is None:
        raise InputError("activation bits and bias correction need calibration images; give some, or leave them out")
    running, batches = RunningNetwork(module), Images.of(images)
    observers: dict[str, Observer] = {}
    keys: dict[str, tuple[object, ...]] = {}  # of the observers that have yet to observe
    watching: dict[fx.Node, list[Callable[[Tensor], None]]] = {}
    for name, format in read.items():
        feeds = check_readable(sites[name]).feeds
        digests = tuple(running.digest(feed, batches) for feed in feeds)
        key: tuple[object, ...] = (*digests, options.activation_range, options.seed)
        known = held.get(key) if held is not None and None not in digests else None
        if known is None:
            known = Observer(format, options.activation_range, seed=options.seed)
            keys[name] = key
            for feed in feeds:
                watching.setdefault(feed, []).append(_naming(name)(known.observe))
        observers[name] = known
    for name, mean in means.items():
        for feed in sites[name].feeds:
            mean.axis = 1 if isinstance(module.get_submodule(name), nn.Conv1d | nn.Conv2d | nn.Conv3d) else -1
            watching.setdefault(feed, []).append(mean.observe)
    running.watch(batches, watching, held)
    for name, key in keys.items():
        if held is not None and None not in key:
            held.put(key, observers[name], observers[name].nbytes)
    for name, mean in means.items():
        found, before = weights[name]
        bias = _bias(module, sites[name])
        if bias is not None:
            bias += bias_correction(before, found, mean.value)
    quantisers = {name: _naming(name)(observers[name].quantiser)(format) for name, format in read.items()}
    install_quantisers(module, sites, quantisers)


@contextmanager
def _naming(layer: str) -> Iterator[None]:
    """What is refused is said of that layer."""
    try:
        yield
    except InputError as error:
        raise InputError(f"layer {layer!r}: {error}") from None


def _bias(module: nn.Module, site: Site) -> Tensor | None:
    """Of a layer that is a module; None where it has none."""
    if site.weight != f"{site.layer}.weight":
        return None
    bias = module.get_submodule(site.layer)._parameters.get("bias")
    return None if bias is None else bias.data


class _Mean:
    """Mean of each channel over all that was seen."""

    def __init__(self) -> None:
        self.axis = 1
        self._total: Tensor = torch.zeros(())
        self._count = 0

    def observe(self, values: Tensor) -> None:
        channels = values.detach().movedim(self.axis, 0).flatten(1).double()
        self._total = self._total + channels.sum(1)
        self._count += channels.shape[1]

    @property
    def value(self) -> Tensor:
        """[channels]."""
        return self._total / max(1, self._count)
