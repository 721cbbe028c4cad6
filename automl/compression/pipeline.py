"""From a policy to the compressed network: take apart, prune, reconstruct, recalibrate, make sparse, quantise."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from automl.compression.blocks import without_blocks
from automl.compression.calibration import check_images, check_labels, draw
from automl.compression.decomposition import Decomposition
from automl.compression.elastic import Elastic
from automl.compression.held import Held
from automl.compression.importance.base import ImportanceInputs
from automl.compression.kernels import crop_kernels
from automl.compression.recalibration import recalibrate_batch_norm
from automl.compression.reconstruction import LayerReconstruction, gather, select
from automl.compression.running import HELD_BYTES
from automl.compression.selection import rank_units, refuse_unranked
from automl.compression.sparsity import criterion
from automl.compression.treatments import Compressed, QuantisationOptions, SparsityOptions, treat
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError
from search_spaces.policy import CompressionPolicy
from search_spaces.resizing import resize
from search_spaces.resolution import Resolution

HELD_CORRECTIONS = 2**27
"""Bytes of corrections that are held, by layer and by what it still reads, for each resolution."""


@dataclass(frozen=True)
class CompressionOptions:
    """How a policy is applied.

    Attributes:
        importance: criterion that ranks the units of a channel group (see `automl.compression.selection`).
        reconstruct: whether layers are refitted after their input channels were pruned.
        calibration_images: images that reconstruction, importance, sparsity and quantisation look at, drawn from those
            given.
        points_per_image: output positions sampled from each of them, for each layer.
        recalibrate_images: images that batch norm is recalibrated on; 0 leaves it as it is.
        seed: of the images and positions drawn.
        sparsity: how the zeros that a policy asks for are chosen.
        quantisation: how values are chosen for formats that a policy asks for.
    """

    importance: str = "magnitude"
    reconstruct: bool = True
    calibration_images: int = 1000
    points_per_image: int = 10
    recalibrate_images: int = 0
    seed: int = 0
    sparsity: SparsityOptions = field(default_factory=SparsityOptions)
    quantisation: QuantisationOptions = field(default_factory=QuantisationOptions)

    def __post_init__(self) -> None:
        for name, least in (("calibration_images", 1), ("points_per_image", 1), ("recalibrate_images", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is at least {least}, got {getattr(self, name)}")
        if self.recalibrate_images == 1:
            raise InputError("recalibrate_images is 0 (off) or at least 2, got 1: one image has no variance")


class Compressor:
    """Applies policies to one network. What the data can tell is gathered once; a policy then costs no forward pass
    (but for `recalibrate_images`), and neither the network nor the order of policies changes what it gives.

    It is gathered once more at each other resolution that policies have, from the same images brought to that: what
    layers read, which they are refitted and their ranges found on, is another there.

    Args:
        network: the captured network, with the weights to compress.
        calibration: training images [N, C, H, W]; None where nothing that is wanted needs them.
        options: how to compress.
        labels: of the images [N]; None where neither the importance nor the criterion of sparsity needs any.
        elastic: of a supernet, whose sub-networks are then cut out as it says instead of by importance.

    Attributes:
        order: the units of every group that may lose some, those that stay longest first.

    Raises:
        InputError: weights or images that are not finite, images of another shape, an unknown importance, options
            that ask for images where none were given.
    """

    def __init__(
        self,
        network: PrunableNetwork,
        calibration: Tensor | None,
        options: CompressionOptions | None = None,
        labels: Tensor | None = None,
        elastic: Elastic | None = None,
    ) -> None:
        self.network = network
        self.elastic = elastic
        self.options = options = options or CompressionOptions()
        self._given, self._at = (calibration, labels), dict[Resolution, Compressor]()
        original = network.prune({})
        _check_weights(original)
        inputs = ImportanceInputs(network, original, calibration, labels, options.seed, options.calibration_images)
        self.order = rank_units(inputs, options.importance) if elastic is None else elastic.order
        self._entries = _entry_indices(network)
        self._decomposition = Decomposition(original, elastic)
        self._layers: Mapping[str, LayerReconstruction] = {}
        self._corrected = Held(HELD_CORRECTIONS)
        self._observed = Held(HELD_BYTES)
        self._recalibration: Tensor | None = None
        self._images: Tensor | None = None
        self._labels: Tensor | None = None
        if calibration is None:
            if options.reconstruct or options.recalibrate_images:
                raise InputError(
                    "reconstruction and recalibration need calibration images; give some, or set reconstruct to false "
                    "and recalibrate_images to 0"
                )
            return
        images = check_images(calibration, network.graph)
        chosen = draw(len(images), options.calibration_images, options.seed)
        self._images = images[chosen]
        if labels is not None and criterion(options.sparsity.criterion).needs_gradient:
            if not network.any_batch:
                raise InputError(
                    f"the criterion {options.sparsity.criterion!r} of sparsity runs the network on any number of "
                    "images, this one fixes its batch; choose 'magnitude'"
                )
            self._labels = check_labels(labels, images)[chosen]
        if options.recalibrate_images:
            if len(images) < 2:
                raise InputError("batch-norm recalibration needs at least 2 calibration images, got 1")
            self._recalibration = images[draw(len(images), options.recalibrate_images, options.seed)]
        if options.reconstruct:
            listen = {
                layer.name: layer.positions
                for layer in network.graph.layers
                if layer.in_extent.terms and not layer.depthwise
            }
            self._layers = gather(original, listen, self._images, options.points_per_image, options.seed)

    def at(self, resolution: Resolution | None) -> "Compressor":
        """What compresses the network that reads images of that resolution.

        Raises:
            InputError: the network was not captured at it.
        """
        network = self.network.at(resolution)
        if resolution is None or network is self.network:
            return self
        if resolution not in self._at:
            images, labels = self._given
            images = None if images is None else resize(images, resolution)
            self._at[resolution] = found = Compressor(network, images, self.options, labels, self.elastic)
            found._observed = self._observed
        return self._at[resolution]

    def kept(self, policy: CompressionPolicy) -> dict[str, list[int]]:
        """The units that stay, sorted, by the name of the channel group.

        Raises:
            InputError: see `ModelGraph.kept_units`; or the importance cannot rank units of which some go.
        """
        if (own := self.at(policy.resolution)) is not self:
            return own.kept(policy)
        graph = self.network.graph
        kept = {}
        for group, count in zip(graph.groups, graph.kept_units(policy), strict=True):
            if count < group.width and group.name not in self.order:
                refuse_unranked(group.name, self.options.importance)
            kept[group.name] = sorted(self.order.get(group.name, np.arange(group.width))[:count].tolist())
        return kept

    def images(self, policy: CompressionPolicy) -> int:
        """Images that a policy's network is run on to compress it, whatever is held of earlier ones; where gradients
        are needed, an image counts three times."""
        layers = policy.layers.values()
        sampled = 0 if self._images is None else len(self._images)
        count = 0 if self._recalibration is None else len(self._recalibration)
        corrected = self.options.quantisation.bias_correction and any(layer.weight_bits for layer in layers)
        if corrected or any(layer.activation_bits for layer in layers):
            count += sampled
        if criterion(self.options.sparsity.criterion).needs_gradient and any(layer.zeros for layer in layers):
            count += 3 * sampled
        return count

    def apply(self, policy: CompressionPolicy) -> fx.GraphModule:
        """The compressed network in eval mode: a plain module without masks, with weights of its own.

        Raises:
            InputError: see `compress`.
            torch.linalg.LinAlgError: the reconstruction of a layer has no solution in floating point.
        """
        return self.compress(policy).module

    def compress(self, policy: CompressionPolicy, *, reconstruct: bool = True, sparse: bool = True) -> Compressed:
        """The compressed network with what has to stay in force while it is trained further.

        A layer that is taken apart is so before it is pruned; it is not reconstructed, nor is one that is cropped.

        Args:
            policy: what is done to each layer.
            reconstruct: whether layers are refitted where the options say so; in vain for weights that are forgotten.
            sparse: whether weights become zero already; otherwise that is left to `fine_tune`.

        Raises:
            InputError: see `ModelGraph.apply`; a layer has no weights of its own, or images or labels are needed.
            torch.linalg.LinAlgError: the reconstruction of a layer has no solution in floating point.
        """
        if (own := self.at(policy.resolution)) is not self:
            return own.compress(policy, reconstruct=reconstruct, sparse=sparse)
        graph = self.network.graph.apply(policy)
        kept = self.kept(policy)
        stay = torch.cat([*(_mask(kept[group.name], group.width) for group in self.network.graph.groups), _ALWAYS])
        module = without_blocks(self.network.prune(kept), graph.removed)
        crop_kernels(module, graph, self.elastic)
        if reconstruct:
            cropped = {name for name, layer in graph.treatments if layer.kernel is not None}
            self._reconstruct(module, stay, cropped | {layer for block in graph.removed for layer in block.layers})
        self._decomposition.apply(module, graph, lambda layer: tuple(stay[index] for index in self._entries[layer]))
        if self._recalibration is not None:
            recalibrate_batch_norm(module, self._recalibration)
        sparsity = self.options.sparsity if sparse else None
        return treat(module, graph, self._images, self._labels, sparsity, self.options.quantisation, self._observed)

    def _reconstruct(self, module: fx.GraphModule, stay: Tensor, gone: Set[str]) -> None:
        """Correct the weights of the layers that lost inputs, in place, but for those that are gone or cropped."""
        for name, layer in self._layers.items():
            if name in gone:
                continue
            groups = len(layer.weight)
            inputs, outputs = (stay[index].reshape(groups, -1) for index in self._entries[name])
            if inputs.all():
                continue
            weight = module.get_parameter(f"{name}.weight").data
            weight += select(self._corrections(name, layer, inputs), outputs).reshape(weight.shape)

    def _corrections(self, name: str, layer: LayerReconstruction, inputs: Tensor) -> list[Tensor]:
        """Of all outputs of a layer, computed once for the inputs that stay."""
        key = name, inputs.numpy().tobytes()
        found: list[Tensor] | None = self._corrected.get(key)
        if found is None:
            found = layer.corrections(inputs)
            self._corrected.put(key, found, sum(block.nbytes for block in found))
        return found


_ALWAYS = torch.ones(1, dtype=torch.bool)


def _mask(indices: Sequence[int], width: int) -> Tensor:
    mask = torch.zeros(width, dtype=torch.bool)
    mask[list(indices)] = True
    return mask


def _entry_indices(network: PrunableNetwork) -> dict[str, tuple[Tensor, Tensor]]:
    """For each layer, where the units of its input and output channels stand among the units of all groups in a row.

    Entries that no group can remove get -1: the last place, which always stays.
    """
    offsets = np.cumsum([0, *(group.width for group in network.graph.groups)])

    def index(groups: npt.ArrayLike, units: npt.ArrayLike) -> Tensor:
        groups = np.asarray(groups)
        return torch.from_numpy(np.where(groups >= 0, offsets[groups] + np.asarray(units), -1))

    return {
        name: (index(units.in_group, units.in_unit), index(units.out_group, units.out_unit))
        for name, units in network.units.items()
    }


def _check_weights(model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"a network to compress has finite weights, {name!r} holds NaN or infinity")
