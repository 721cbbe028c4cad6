"""The fastest form of a network that torch runs on a CPU, for evaluations: batch norm folded, channels last."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from search_spaces.recurrent import shell


def for_inference(module: fx.GraphModule) -> fx.GraphModule:
    """Fold batch norm into the layers before it and lay the weights out channels last, in place.

    Same outputs up to rounding; the module can no longer be trained. Feed it channels-last images.
    """
    for name, norm, folded in folds(module):
        module.set_submodule(name, folded)
        module.set_submodule(norm, nn.Identity())
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    return module


def folds(module: fx.GraphModule) -> Iterator[tuple[str, str, nn.Module]]:
    """Names of a layer and of the batch norm that goes into it, and a layer that does both; nothing is changed."""
    for layer_name, norm_name in _foldable(module):
        folded = _fold(module.get_submodule(layer_name), module.get_submodule(norm_name))
        if folded is not None:
            yield layer_name, norm_name, folded


@torch.no_grad()
def _fold(layer: nn.Module, norm: Any) -> nn.Module | None:
    statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    if isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
        folded: Any = shell(layer)
        folded.weight, folded.bias = fuse_linear_bn_weights(layer.weight, layer.bias, *statistics)
    elif isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
        folded = shell(layer)
        folded.weight, folded.bias = fuse_conv_bn_weights(layer.weight, layer.bias, *statistics)
    else:
        return None
    return folded  # type: ignore[no-any-return]


def _foldable(module: fx.GraphModule) -> Iterator[tuple[str, str]]:
    """Names of a layer and of the batch norm that alone reads it, each called once and with fixed statistics."""
    calls = Counter(str(node.target) for node in module.graph.nodes if node.op == "call_module")
    for node in module.graph.nodes:
        if node.op != "call_module" or calls[str(node.target)] > 1 or not node.args:
            continue
        norm, source = module.get_submodule(str(node.target)), node.args[0]
        if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) or norm.running_mean is None:
            continue
        sole = isinstance(source, fx.Node) and source.op == "call_module" and len(source.users) == 1
        if sole and calls[str(source.target)] == 1:
            yield str(source.target), str(node.target)
