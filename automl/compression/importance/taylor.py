"""How much the loss is expected to change without a unit, to first order."""

from collections.abc import Iterable, Iterator
from types import TracebackType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automl.compression.importance.base import FloatArray, ImportanceInputs
from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph
from search_spaces.template import Conv

BATCH = 64


def taylor(inputs: ImportanceInputs) -> dict[str, FloatArray]:
    """|sum of activation * dC/d activation| of what a unit is read as, averaged over the calibration images.

    Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017: by Taylor
    expansion, how the cost C (cross-entropy, of each image) changes when the unit's feature map is set to zero.
    A unit's feature maps are what the layers that read it see of it, all of them together, for a unit that is pruned
    is missing in all of them. The paper's division by the size of the map cancels in its normalisation by the l2 norm
    of a layer, and is left out.

    Raises:
        InputError: there are no calibration images or labels, or they do not fit the network; or its batch size is
            fixed.
    """
    network, (images, labels) = inputs.network, inputs.calibration()
    if not network.any_batch:
        raise InputError("the importance 'taylor' runs the network on any number of images, this one fixes its batch")
    places = _places(inputs)
    if not places:
        return {group.name: np.zeros(group.width) for group in network.graph.groups}
    starts = np.cumsum([0, *(group.width for group in network.graph.groups)])
    total = torch.zeros(int(starts[-1]) + 1, dtype=torch.float64)
    with torch.enable_grad(), _Gates(inputs, places) as gates:
        batch = BATCH if gates.one_an_image(network.graph) else 1
        for some, wanted in zip(torch.split(images, batch), torch.split(labels, batch), strict=True):
            cost = cross_entropy(inputs.original(some), wanted)
            change = torch.zeros(len(some), len(total), dtype=torch.float64)
            for name, gradient in gates.gradients(cost.sum()):
                change.index_add_(1, places[name], gradient.double())
            total += change.abs().sum(0)
    scores = (total / len(images)).numpy()
    return {
        group.name: scores[start : start + group.width]
        for group, start in zip(network.graph.groups, starts, strict=False)
    }


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each image [N], its mean over the positions where the network answers at several.

    Args:
        outputs: logits [N, classes] or [N, positions, classes].
        labels: class numbers [N] or [N, positions].

    Raises:
        InputError: the labels are of another shape, or of a class that the network does not know.
    """
    if labels.shape != outputs.shape[:-1]:
        raise InputError(
            f"calibration labels have the shape of the network's answers without the classes, "
            f"{list(outputs.shape[:-1])}; got {list(labels.shape)}"
        )
    if int(labels.max()) >= outputs.shape[-1]:
        raise InputError(f"the network knows {outputs.shape[-1]} classes, a calibration label is {int(labels.max())}")
    cost = F.cross_entropy(outputs.movedim(-1, 1), labels, reduction="none")
    return cost.reshape(len(cost), -1).mean(1)


def _places(inputs: ImportanceInputs) -> dict[str, Tensor]:
    """For each layer that reads units, where those of its input channels stand among the units of all groups in a row;
    channels that no group can remove stand last."""
    network = inputs.network
    starts = np.cumsum([0, *(group.width for group in network.graph.groups)])
    places = {}
    for layer in network.graph.layers:
        units = network.units.get(layer.name)
        if units is not None and not layer.depthwise and (units.in_group >= 0).any():
            index = np.where(units.in_group >= 0, starts[units.in_group] + units.in_unit, starts[-1])
            places[layer.name] = torch.from_numpy(index)
    return places


class _Gates:
    """Multiplies every input channel of some layers by a gate of one, for as long as the context lasts.

    The gradient of a gate is the sum of activation times gradient over the channel. A layer that is a matrix of a
    larger module has no input of its own; a gate at its input would act as one on the weights that read the input,
    so there the gradient of those is taken, which is not one of each image.
    """

    def __init__(self, inputs: ImportanceInputs, layers: Iterable[str]) -> None:
        self.modules: dict[str, nn.Module] = {}
        self.weights: dict[str, Tensor] = {}
        for name in layers:
            weight = inputs.network.weight_names[name]
            if weight == f"{name}.weight":
                self.modules[name] = inputs.original.get_submodule(name)
            else:
                self.weights[name] = inputs.original.get_parameter(weight)
        self._opened: list[tuple[str, Tensor]] = []
        self._images = True

    def __enter__(self) -> "_Gates":
        self._frozen = [weight for weight in self.weights.values() if not weight.requires_grad]
        for weight in self._frozen:
            weight.requires_grad_(True)
        self._handles = [
            module.register_forward_pre_hook(lambda layer, args, name=name: self._open(name, layer, args))
            for name, module in self.modules.items()
        ]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        for weight in self._frozen:
            weight.requires_grad_(False)

    def one_an_image(self, graph: ModelGraph) -> bool:
        """Whether there can be a gate of each image: the batch is the first dimension of whatever is gated."""
        operators = {operator.name: operator for operator in graph.full_operators}
        self._images = not self.weights and all(
            operators[operator.inputs[0]].batched for operator in operators.values() if operator.layer in self.modules
        )
        return self._images

    def gradients(self, cost: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(layer, gradient of its gates [images, channels]) for every call of a layer since the last time."""
        opened, self._opened = self._opened, []
        leaves = [*(gate for _, gate in opened), *self.weights.values()]
        found = torch.autograd.grad(cost, leaves, materialize_grads=True)
        for (name, gate), gradient in zip(opened, found, strict=False):
            yield name, gradient.reshape(len(gate), -1)
        for (name, weight), gradient in zip(self.weights.items(), found[len(opened) :], strict=True):
            yield name, (weight.detach() * gradient).sum(0, keepdim=True)

    def _open(self, name: str, layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *others = args
        axis = 1 if isinstance(layer, Conv) else x.ndim - 1
        shape = [1] * x.ndim
        shape[axis] = x.shape[axis]
        if self._images:
            shape[0] = len(x)
        gate = torch.ones(shape, dtype=x.dtype, requires_grad=True)
        self._opened.append((name, gate))
        return (x * gate, *others)
