"""What a policy takes from a network beside channels and bits: residual blocks, and the rims of kernels."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from search_spaces.graph import ModelGraph
from search_spaces.layers import LayerSpec
from search_spaces.operators import Block


@dataclass(frozen=True)
class Cuts:
    """Blocks that are left out, and kernels that are cropped.

    Attributes:
        blocks: of the network's graph.
        kernels: by layer, how wide the kernel stays.
    """

    blocks: tuple[Block, ...] = ()
    kernels: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, graph: ModelGraph) -> "Cuts":
        """Those of a policy's graph."""
        kernels = ((name, layer.kernel) for name, layer in graph.treatments if layer.kernel is not None)
        return cls(graph.removed, tuple(kernels))


NONE = Cuts()


def without_blocks(graph: ModelGraph, blocks: tuple[Block, ...]) -> ModelGraph:
    """The whole network as it would be captured without those blocks; its channel groups are the same."""
    if not blocks:
        return graph
    widths = tuple(group.width for group in graph.groups)
    smaller = replace(graph, kept=widths, treatments=(), removed=blocks)
    return replace(smaller, full_operators=smaller.operators, full_layers=smaller.layers, removed=())


def cropped(layers: Mapping[str, LayerSpec], kernels: Mapping[str, int]) -> Mapping[str, LayerSpec]:
    """The layers of a network, by name, some of their kernels cropped."""
    found = {name: layers[name].cropped(width) for name, width in kernels.items() if name in layers}
    return {**layers, **found} if found else layers
