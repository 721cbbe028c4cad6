"""What an operator does to labels: which rule it goes by, and the rules of those that move channels or keep them apart.
Operators that mix channels have theirs in `search_spaces.label_rules`.

A rule takes the propagation and a node and gives the label tensor of its result, or None where it does not apply.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from search_spaces import label_rules
from search_spaces.label_tensors import channel_vector, first_entries, run_move, varies
from search_spaces.template import PADS, arguments, op_name, source_of

if TYPE_CHECKING:
    from search_spaces.labels import LabelPropagation

Rule = Callable[["LabelPropagation", fx.Node], Tensor | None]

MOVES = {
    "reshape", "flatten", "permute", "transpose", "t", "movedim", "swapaxes", "slice", "select", "unsqueeze",
    "expand", "flip", "roll", "index_select", "index", "repeat", "repeat_interleave", "channel_shuffle",
    "native_channel_shuffle",
}  # fmt: skip
"""Operators that only move, repeat or drop entries: run literally on label tensors."""

_PASSES = {
    "contiguous", "clone", "to", "_to_copy", "type_as", "dropout", "hardswish", "log_sigmoid", "rrelu",
    "zeros_like", "ones_like", "full_like",
}  # fmt: skip
"""Operators that work entry by entry on their first argument, though torch does not tag them so."""

_SPATIAL = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool", "upsample_", "_upsample_")
_REDUCTIONS = {"mean", "sum", "amax", "amin", "max", "min", "var", "std", "logsumexp", "median"}
_MIXED: dict[str, Rule] = {
    "scaled_dot_product_attention": label_rules.attention,
    "matmul": label_rules.product,
    "bmm": label_rules.product,
    "layer_norm": label_rules.layer_norm,
    "group_norm": label_rules.group_norm,
}
_ALONG = {"softmax", "log_softmax", "cumsum", "sort"}


def rule_of(node: fx.Node) -> Rule | None:
    """The rule that an operator goes by; None where it is not understood."""
    name = op_name(node)
    tags = getattr(node.target, "tags", ())
    if name in MOVES:
        return _move
    if name in ("cat", "concat", "stack"):
        return _concatenate
    if name in PADS:
        return _pad
    if name in ("prelu", "instance_norm", "batch_norm"):
        return _by_channel
    if name == "glu":
        return _glu
    if name in _MIXED:
        return _MIXED[name]
    if name in ("pixel_shuffle", "pixel_unshuffle"):
        return _pixels
    if name.startswith(_SPATIAL):
        return _space
    if name in _REDUCTIONS and "other" not in arguments(node):
        return _reduce
    if name in _ALONG:
        return _normalise
    if torch.Tag.pointwise in tags or name in _PASSES or name in _REDUCTIONS:
        return _pointwise
    return None


def _first(node: fx.Node) -> bool:
    """Whether dimension 1 is that of the channels: where the batch is the first one, or there is none."""
    return node.meta["batch_axis"] in (None, 0)


def _move(run: "LabelPropagation", node: fx.Node) -> Tensor | None:
    return run_move(run.template, node, run.values[node.all_input_nodes[0]])


def _concatenate(run: "LabelPropagation", node: fx.Node) -> Tensor | None:
    found = arguments(node)
    sources, dim = [run.values[source] for source in found["tensors"]], found["dim"]
    if op_name(node) == "stack":
        dim %= sources[0].ndim + 1
        sources = [source.unsqueeze(dim) for source in sources]
    dim %= sources[0].ndim
    if dim == node.meta["batch_axis"]:
        return None
    sources = [source for source in sources if source.ndim == len(node.meta["shape"])]
    narrow = []
    for axis in range(sources[0].ndim):
        if axis != dim and all(source.stride(axis) == 0 or source.shape[axis] == 1 for source in sources):
            narrow.append(axis)
    for axis in narrow:
        sources = [source.narrow(axis, 0, 1) for source in sources]
    return torch.cat(sources, dim).expand(node.meta["shape"])


def _pad(run: "LabelPropagation", node: fx.Node) -> Tensor | None:
    """Channels that are added have fresh labels; space that is added belongs to its channel."""
    result: Tensor = run.values[source_of(node)]
    found = arguments(node)
    amounts = found["pad"]
    axes = [axis for axis in range(result.ndim) if varies(result, axis)]
    for position in range(len(amounts) // 2):
        axis = result.ndim - 1 - position
        before, after = amounts[2 * position : 2 * position + 2]
        if axis not in axes:
            continue
        if before == after == 0:
            continue
        if min(before, after) < 0 or axes != [axis] or found.get("mode", "constant") != "constant":
            return None
        line = result.movedim(axis, 0).reshape(result.shape[axis], -1)[:, 0]
        line = torch.cat([run.fresh(before), line, run.fresh(after)])
        shape = list(result.shape)
        shape[axis] = len(line)
        result = run.along(line, axis, shape)
    return first_entries(result, [axis for axis in range(result.ndim) if axis not in axes]).expand(node.meta["shape"])


def _space(run: "LabelPropagation", node: fx.Node) -> Tensor | None:
    source: Tensor = run.values[source_of(node)]
    axes = range(2, source.ndim)
    if "items" in node.meta or not _first(node) or any(varies(source, axis) for axis in axes):
        return None
    return first_entries(source, axes).expand(node.meta["shape"])


def _reduce(run: "LabelPropagation", node: fx.Node) -> Tensor | None:
    source: Tensor = run.values[source_of(node)]
    found = arguments(node)
    dims = found.get("dim")
    if dims is None or dims == [] or "items" in node.meta:
        return None
    axes = [axis % source.ndim for axis in (dims if isinstance(dims, list | tuple) else [dims])]
    if source_of(node).meta["batch_axis"] in axes or any(varies(source, axis) for axis in axes):
        return None
    result = first_entries(source, axes)
    if not found.get("keepdim"):
        for axis in sorted(axes, reverse=True):
            result = result.squeeze(axis)
    return result


def _normalise(run: "LabelPropagation", node: fx.Node) -> Tensor | None:
    source: Tensor = run.values[source_of(node)]
    axis = arguments(node)["dim"] % source.ndim
    return None if axis in (0, node.meta.get("batch_axis")) or varies(source, axis) or "items" in node.meta else source


def _by_channel(run: "LabelPropagation", node: fx.Node) -> Tensor | None:
    """The parameters have an entry a channel; space is left alone."""
    source, *parameters = (run.values[argument] for argument in node.all_input_nodes)
    if not _first(node) or any(parameter.ndim > 1 for parameter in parameters):
        return None
    columns = [parameter.reshape([-1] + [1] * (source.ndim - 2)) for parameter in parameters if len(parameter) > 1]
    return run.meet([source, *columns])


def _glu(run: "LabelPropagation", node: fx.Node) -> Tensor | None:
    source: Tensor = run.values[source_of(node)]
    value, gate = source.chunk(2, arguments(node)["dim"])
    return run.meet([value, gate])


def _pixels(run: "LabelPropagation", node: fx.Node) -> Tensor | None:
    """Pixel shuffle: the channels that make up one block of pixels stay or go together."""
    source = channel_vector(run.values[source_of(node)], 1)
    if source is None or not _first(node):
        return None
    found = arguments(node)
    if "downscale_factor" in found:
        labels = source.repeat_interleave(found["downscale_factor"] ** 2)
    else:
        rows = source.reshape(-1, found["upscale_factor"] ** 2)
        run.link(rows[:, :1].expand_as(rows), rows)
        labels = rows[:, 0]
    return run.along(labels, 1, node.meta["shape"])


def _pointwise(run: "LabelPropagation", node: fx.Node) -> Tensor | None:
    sources = [run.values[source] for source in node.all_input_nodes]
    return sources[0] if op_name(node) in _PASSES else run.meet(sources)
