"""The fastest form of a network that torch runs on a CPU, for evaluations: batch norm folded, channels last."""

from collections import Counter
from collections.abc import Iterator

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval


def for_inference(module: fx.GraphModule) -> fx.GraphModule:
    """Fold batch norm into the layers before it and lay the weights out channels last, in place.

    Same outputs up to rounding; the module can no longer be trained. Feed it channels-last images.
    """
    for layer_name, norm_name in _foldable(module):
        layer, norm = module.get_submodule(layer_name), module.get_submodule(norm_name)
        if isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
            module.set_submodule(layer_name, fuse_linear_bn_eval(layer, norm))
        elif isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            module.set_submodule(layer_name, fuse_conv_bn_eval(layer, norm))
        else:
            continue
        module.set_submodule(norm_name, nn.Identity())
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    return module


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
