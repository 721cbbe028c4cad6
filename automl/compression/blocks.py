"""Cutting whole residual blocks out of a network, and finding out which of them it misses least."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, fx, nn

from automl.compression.importance.base import ImportanceInputs
from automl.compression.importance.taylor import cross_entropy
from search_spaces.blocks import residual_blocks
from search_spaces.errors import InputError
from search_spaces.operators import Block
from search_spaces.template import drop_unused

BATCH = 64
_SUMS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


def without_blocks(module: fx.GraphModule, blocks: Iterable[Block]) -> fx.GraphModule:
    """The network without the branches of some residual blocks: each sum is replaced by what the branch was added to.

    Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016, drop blocks so in training; Veit et al., "Residual
    Networks Behave Like Ensembles of Relatively Shallow Networks", NIPS 2016, in trained networks.

    Args:
        module: what `PrunableNetwork.prune` gave, compressed further or not; it is not changed.
        blocks: of the network's graph; see `search_spaces.blocks.residual_blocks`.

    Returns:
        A network with tensors of its own, without the modules that only the branches called; without blocks to remove
        the one given.

    Raises:
        InputError: the network has no such block, or has lost it before.
    """
    blocks = tuple(blocks)
    if not blocks:
        return module
    graph = copy.deepcopy(module.graph)
    nodes = {node.name: node for node in graph.nodes}
    for block in blocks:
        total = nodes.pop(block.sum, None)
        if total is None or total.target not in _SUMS:
            raise InputError(
                f"the network has no block {block.name!r} that ends in the sum {block.sum!r}; give each of its blocks "
                "once, as `residual_blocks` finds them in its graph"
            )
        total.replace_all_uses_with(total.args[block.identity])
        graph.erase_node(total)
    drop_unused(graph)
    smaller = fx.GraphModule(copy.deepcopy(module), graph, class_name=type(module).__name__)
    saved = module.state_dict().keys()
    for name, _ in smaller.named_buffers():
        owner, _, last = name.rpartition(".")
        if name not in saved:  # fx registers every tensor as persistent
            smaller.get_submodule(owner)._non_persistent_buffers_set.add(last)
    return smaller


def block_importance(inputs: ImportanceInputs) -> dict[str, float]:
    """How much the cross-entropy on the calibration images rises without each residual block alone, by its name.

    The lesion study of Veit et al. 2016, with the loss in place of the error. One pass over the images for
    each block; what several blocks are worth together is not the sum.

    Args:
        inputs: of the network as captured; see `ImportanceInputs`.

    Raises:
        InputError: there are no calibration images or labels, or they do not fit the network.
    """
    images, labels = inputs.calibration()
    whole = inputs.network.prune({})
    whole.load_state_dict(inputs.original.state_dict())
    before = _loss(whole, images, labels)
    return {
        block.name: _loss(without_blocks(whole, [block]), images, labels) - before
        for block in residual_blocks(inputs.network.graph)
    }


@torch.no_grad()
def _loss(module: nn.Module, images: Tensor, labels: Tensor) -> float:
    batches = zip(torch.split(images, BATCH), torch.split(labels, BATCH), strict=True)
    total = sum(float(cross_entropy(module(some), wanted).double().sum()) for some, wanted in batches)
    return total / len(images)
