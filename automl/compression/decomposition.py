"""Layers of a pruned network taken apart: whole layers are factored, then their channels pruned."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import Tensor, fx, nn

from automl.compression.elastic import Elastic
from automl.compression.kernels import crop
from automl.compression.low_rank import factorise
from automl.compression.structure import take_apart
from search_spaces.errors import InputError
from search_spaces.factorisations import INPUT_MATRIX, Rank
from search_spaces.graph import ModelGraph
from search_spaces.layers import LayerSpec
from search_spaces.rebuild import slice_layer
from search_spaces.template import Weighted

HELD_WEIGHTS = 2**26
"""Of factors that are held, 256 MiB in float32; beyond it those that were not used for longest are forgotten."""

Stays = Callable[[str], tuple[Tensor, ...]]
"""Layer -> which of its input and of its output channels stay, bool [in] and [out]."""


class Decomposition:
    """Takes layers of one network apart; what a layer becomes at some rank is computed once and held.

    Args:
        original: the network before pruning, which stays as it is.
        elastic: of a supernet, which crops kernels in its own way.
    """

    def __init__(self, original: nn.Module, elastic: Elastic | None = None) -> None:
        self._elastic = elastic
        self._modules: dict[str, nn.Module] = dict(original.named_modules())
        self._held: OrderedDict[tuple[str, tuple[int, ...] | None, str, Rank], Sequence[nn.Module]] = OrderedDict()

    def apply(self, module: fx.GraphModule, graph: ModelGraph, stays: Stays) -> None:
        """Take apart what the graph says, in place.

        Args:
            module: the pruned network.
            graph: of the network that is wanted.
            stays: of a layer of the original.

        Raises:
            InputError: a layer cannot be taken apart.
        """
        whole = {spec.name: spec for spec in graph.full_layers}
        for name, policy in graph.treatments:
            if policy.factors is None:
                continue
            cropped = None if policy.kernel is None else whole[name].cropped(policy.kernel)
            first, *others = self._parts(name, cropped, *policy.factors)
            inputs, outputs = (stay.nonzero().flatten().numpy() for stay in stays(name))
            *between, last = others
            parts = [slice_layer(first, inputs, None), *(slice_layer(part, None, None) for part in between)]
            take_apart(module, name, [*parts, slice_layer(last, None, outputs)])

    def _parts(self, name: str, cropped: LayerSpec | None, method: str, rank: Rank) -> Sequence[nn.Module]:
        """Of the whole layer, its kernel cropped."""
        key = name, None if cropped is None else cropped.kernel, method, rank
        if key not in self._held:
            layer = self._layer(name)
            if cropped is not None:
                layer = copy.deepcopy(layer)
                crop(layer, cropped, self._elastic)
            self._held[key] = list(factorise(layer, method, rank))
        self._held.move_to_end(key)
        while sum(map(_weights, self._held.values())) > HELD_WEIGHTS and len(self._held) > 1:
            self._held.popitem(last=False)
        return self._held[key]

    def _layer(self, name: str) -> nn.Module:
        """A layer that can be taken apart; a recurrent layer's input matrix as a linear layer."""
        owner, _, matrix = name.rpartition(".")
        if matrix == INPUT_MATRIX and isinstance(self._modules.get(owner), nn.RNNBase):
            weight = self._modules[owner].get_parameter(matrix)
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            linear.weight = weight
            return linear
        if not isinstance(self._modules.get(name), Weighted):
            raise InputError(f"layer {name!r} is part of another module and cannot be taken apart; leave out its rank")
        return self._modules[name]


def _weights(parts: Sequence[nn.Module]) -> int:
    return sum(parameter.numel() for part in parts for parameter in part.parameters())
