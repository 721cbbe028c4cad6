"""The fastest form of a network that torch runs on a CPU, for evaluations: batch norm folded, channels last."""

from collections import Counter
from collections.abc import Iterable

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from search_spaces.errors import TrimtabError


def foldable_pairs(module: fx.GraphModule) -> list[tuple[str, str]]:
    """(layer, batch norm) by name wherever a batch norm is the only reader of a convolution or linear layer.

    Pruning does not change how operators are connected, so the pairs of a network are those of all its pruned ones.
    """
    calls = Counter(str(node.target) for node in module.graph.nodes if node.op == "call_module")
    pairs = []
    for node in module.graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not (isinstance(source, fx.Node) and source.op == "call_module" and len(source.users) == 1):
            continue
        names = str(source.target), str(node.target)
        layer, norm = (module.get_submodule(name) for name in names)
        convolution = isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        linear = isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d)
        called_once = all(calls[name] == 1 for name in names)
        if (convolution or linear) and norm.running_mean is not None and called_once:
            pairs.append(names)
    return pairs


def for_inference(module: fx.GraphModule, pairs: Iterable[tuple[str, str]]) -> fx.GraphModule:
    """Fold batch norm into the layers before it and lay the weights out channels last, in place.

    Same outputs up to rounding; the module can no longer be trained. Feed it channels-last images.
    """
    for layer_name, norm_name in pairs:
        layer, norm = module.get_submodule(layer_name), module.get_submodule(norm_name)
        if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            raise TrimtabError(f"{norm_name!r} is a batch norm in the original network, here a {type(norm).__name__}")
        if isinstance(layer, nn.Linear):
            module.set_submodule(layer_name, fuse_linear_bn_eval(layer, norm))
        elif isinstance(layer, nn.Conv2d):
            module.set_submodule(layer_name, fuse_conv_bn_eval(layer, norm))
        module.set_submodule(norm_name, nn.Identity())
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    return module
