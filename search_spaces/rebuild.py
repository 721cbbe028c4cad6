"""Builds the pruned network: the template's graph over smaller layers, with the constants that depend on widths."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from search_spaces.channels import ChannelStructure, Gather
from search_spaces.labels import IntArray
from search_spaces.recurrent import Recurrent, matrices, shell, with_parameters
from search_spaces.template import PADS, Template, Weighted, arguments, drop_unused, op_name, source_of

aten = torch.ops.aten
BoolArray = npt.NDArray[np.bool_]


def build(
    structure: ChannelStructure, template: Template, kept: Mapping[int, npt.NDArray[np.int64]]
) -> torch.fx.GraphModule:
    """The network in which group i keeps the units kept[i] (groups that are absent keep all).

    Args:
        structure: of the same graph.
        template: gives the weights; the structure's own or a copy with other weights.
        kept: rising unit indices by group index.

    Returns:
        A network in eval mode with tensors of its own.
    """
    return _Builder(structure, template, structure.alive(kept)).run()


def with_tensors(template: Template, tensors: Mapping[str, torch.Tensor]) -> Template:
    """The same template on other tensors (not copied), given by qualified name; what was a parameter stays one."""

    def other(name: str, value: Any) -> Any:
        return value if name not in tensors else _parameter(value, tensors[name])

    modules = {}
    for name, module in template.modules.items():
        modules[name] = shell(module)
        for store in (modules[name]._parameters, modules[name]._buffers):
            for key, value in store.items():
                if value is not None:
                    store[key] = other(f"{name}.{key}", value)
        if isinstance(module, Recurrent):
            modules[name] = with_parameters(module, modules[name]._parameters)
    free = {name: other(name, value) for name, value in template.tensors.items()}
    return replace(template, modules=modules, tensors=free)


def slice_layer(module: nn.Module, inputs: IntArray | None, outputs: IntArray | None) -> nn.Module:
    """A copy of a layer with some of its input and output channels (None: all).

    Args:
        module: convolution, linear, batch norm (outputs only) or a module without tensors.
        inputs: rising indices of the input channels that stay; equally many in each group of a grouped convolution.
        outputs: the same for the output channels.
    """
    new = shell(module)
    if isinstance(module, Weighted):
        _slice_weighted(module, new, inputs, outputs)
    else:
        for store in (new._parameters, new._buffers):
            for key, tensor in store.items():
                if tensor is not None:
                    store[key] = _take(tensor, 0, outputs if tensor.ndim else None)  # type: ignore[assignment]
        if outputs is not None:
            new.num_features = len(outputs)  # type: ignore[assignment]
    return new


def slice_recurrent(module: Recurrent, sides: Mapping[str, tuple[IntArray | None, IntArray | None]]) -> Recurrent:
    """A copy of a recurrent layer with fewer hidden units.

    Args:
        module: the layer.
        sides: for each of its weight matrices the rising indices of the columns and of the rows that stay (None: all).
    """
    tensors = {}
    for matrix in matrices(module):
        columns, rows = sides[matrix.weight]
        tensors[matrix.weight] = _take(_take(module._parameters[matrix.weight], 1, columns), 0, rows)  # type: ignore[arg-type]
        if matrix.bias is not None:
            tensors[matrix.bias] = _take(module._parameters[matrix.bias], 0, rows)  # type: ignore[arg-type]
    return with_parameters(module, tensors)


def _slice_weighted(
    module: Weighted,
    new: nn.Module,
    inputs: IntArray | None,
    outputs: IntArray | None,
) -> None:
    weight: torch.Tensor = module.weight
    groups = 1 if isinstance(module, nn.Linear) else module.groups
    width = weight.shape[1] * groups
    columns = inputs
    if inputs is not None and groups > 1:
        if groups == width:  # depthwise: a filter goes with its channel
            columns, groups = None, len(inputs)
        else:  # the same positions stay in every group
            columns = inputs[: len(inputs) // groups]
    taken = weight if columns is None else weight.index_select(1, torch.from_numpy(columns).to(weight.device))
    new._parameters["weight"] = _parameter(weight, _take(taken, 0, outputs))
    if module.bias is not None:
        new._parameters["bias"] = _take(module.bias, 0, outputs)  # type: ignore[assignment]
    sizes = {
        "in": width if inputs is None else len(inputs),
        "out": weight.shape[0] if outputs is None else len(outputs),
    }
    suffix = "features" if isinstance(module, nn.Linear) else "channels"
    for side, size in sizes.items():
        setattr(new, f"{side}_{suffix}", size)
    if suffix == "channels":
        new.groups = groups  # type: ignore[assignment]


def _take(tensor: torch.Tensor, axis: int, index: IntArray | None) -> torch.Tensor:
    """An own copy of some entries; a parameter stays one."""
    data = tensor.detach()
    new = data.clone() if index is None else data.index_select(axis, torch.from_numpy(index).to(data.device))
    return _parameter(tensor, new)


def _parameter(like: torch.Tensor, data: torch.Tensor) -> nn.Parameter:
    if isinstance(like, nn.Parameter):
        return nn.Parameter(data.detach(), requires_grad=like.requires_grad)
    return data.detach()  # type: ignore[return-value]


class _Builder:
    """Copies the template's graph, rewriting what depends on the number of channels."""

    def __init__(self, structure: ChannelStructure, template: Template, alive: BoolArray) -> None:
        self.structure = structure
        self.template = template
        self.alive = alive
        self.graph = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}
        self.indices: dict[str, torch.Tensor] = {}
        tensors = (tensor for module in template.modules.values() for tensor in module.parameters())
        self.device = next((tensor.device for tensor in tensors), torch.device("cpu"))

    def run(self) -> torch.fx.GraphModule:
        for node in self.structure.template.graph.nodes:
            gather = self.structure.gathers.get(node)
            if gather is not None and not all(self._fits(step) for step in gather.chain):
                self.env[node] = self._gather(gather)
            else:
                self.env[node] = self._copy(node)
        drop_unused(self.graph)
        root = nn.Module()
        for name, module in sorted(self.template.modules.items(), key=lambda item: item[0].count(".")):
            _attach(root, name, self._sliced(name, module))
        free = {**self.template.tensors, **self.indices}
        for name in {str(node.target) for node in self.graph.nodes if node.op == "get_attr"}:
            _attach(root, name, self._free(name, free[name]), save=name in self.template.saved)
        network = fx.GraphModule(root, self.graph, class_name="PrunedNetwork")
        for name in free.keys() - self.template.saved:  # fx registers every tensor as persistent
            *path, last = name.split(".")
            owner = network.get_submodule(".".join(path)) if _has(network, path) else None
            if owner is not None and last in owner._buffers:
                owner._non_persistent_buffers_set.add(last)
        return network.eval()

    # -- layers and free tensors -----------------------------------------------------------------------------------

    def _sliced(self, name: str, module: nn.Module) -> nn.Module:
        if isinstance(module, Recurrent):
            return slice_recurrent(
                module, {each.weight: self._sides(f"{name}.{each.weight}") for each in matrices(module)}
            )
        return slice_layer(module, *self._sides(name))

    def _sides(self, name: str) -> tuple[IntArray | None, IntArray | None]:
        labels = self.structure.labels
        if name in labels.layers:
            sides = labels.layers[name]
            return self._stay(self.structure.unit_ids(sides.inputs)), self._stay(self.structure.unit_ids(sides.outputs))
        if name in labels.carriers:
            return None, self._stay(self.structure.unit_ids(labels.carriers[name]))
        return None, None

    def _stay(self, units: IntArray) -> IntArray | None:
        mask = self.alive[units]
        return None if mask.all() else np.flatnonzero(mask)

    def _free(self, name: str, value: torch.Tensor | nn.Module) -> torch.Tensor | nn.Module:
        """A free parameter or constant, without the entries of removed channels."""
        if isinstance(value, nn.Module):
            return copy.deepcopy(value)
        units = None
        for node in self.structure.template.graph.nodes:
            if node.op == "get_attr" and node.target == name:
                units = self.structure.unit_arrays.get(node)
        new = value.detach()
        if units is not None:
            mask = self.alive[units]
            for axis in range(mask.ndim):
                if mask.shape[axis] > 1:
                    line = mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis))
                    if not line.all():
                        new = new.index_select(axis, torch.from_numpy(np.flatnonzero(line)).to(new.device))
        return _parameter(value, new.clone())

    # -- nodes -----------------------------------------------------------------------------------------------------

    def _mask(self, node: fx.Node) -> BoolArray | None:
        units = self.structure.unit_arrays.get(node)
        return None if units is None else self.alive[units]

    def _line(self, node: fx.Node, axis: int) -> BoolArray:
        """[size] which entries stay along an axis of a node's output."""
        size = node.meta["shape"][axis]
        mask = self._mask(node)
        if mask is None:
            return np.ones(size, dtype=bool)
        line: BoolArray = np.asarray(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        return line if len(line) == size else np.broadcast_to(line, (size,))

    def _fits(self, node: fx.Node) -> bool:
        """Whether a moving operator is right for these channels once its sizes are rewritten."""
        source = source_of(node)
        masks = [self._mask(source), self._mask(node)]
        if all(mask is None or mask.all() for mask in masks):
            return True
        name = op_name(node)
        if name in ("roll", "index_select", "index", "channel_shuffle", "native_channel_shuffle", "select") or (
            name == "slice" and arguments(node)["step"] != 1
        ):
            return False
        return all(mask is None or _rectangular(mask) for mask in masks)

    def _copy(self, node: fx.Node) -> fx.Node:
        name = op_name(node)
        mask = self._mask(node)
        shrinks = mask is not None and not mask.all()
        args: tuple[Any, ...] | None = None
        if name in ("reshape", "expand") and shrinks:
            given = node.args[1]
            args = (
                node.args[0],
                [
                    size if size == -1 or isinstance(size, fx.Node) else int(self._line(node, axis).sum())
                    for axis, size in enumerate(given)  # type: ignore[arg-type]
                ],
            )
        elif name == "slice":
            args = self._slice(node)
        elif name in PADS and shrinks:
            args = self._pad(node)
        elif name == "group_norm" and shrinks:
            stays = self._line(node, 1).reshape(arguments(node)["num_groups"], -1).any(1)
            args = (node.args[0], int(stays.sum()), *node.args[2:])
        new = self.graph.node_copy(node, self.env.__getitem__)
        new.meta = {}
        if args is not None:
            new.args = fx.map_arg(args, self.env.__getitem__)
        return new

    def _slice(self, node: fx.Node) -> tuple[Any, ...] | None:
        found = arguments(node)
        source, dim = source_of(node), found["dim"]
        line = self._line(source, dim) if "shape" in source.meta else None
        if line is None or line.all():
            return None
        start, end = int(line[: found["start"]].sum()), int(line[: found["end"]].sum())
        return (source, dim, start, end, found["step"])

    def _pad(self, node: fx.Node) -> tuple[Any, ...]:
        amounts = list(node.args[1])  # type: ignore[arg-type]
        rank = len(node.meta["shape"])
        for position in range(len(amounts) // 2):
            before, after = amounts[2 * position : 2 * position + 2]
            line = self._line(node, rank - 1 - position)
            amounts[2 * position] = int(line[:before].sum()) if before > 0 else before
            amounts[2 * position + 1] = int(line[len(line) - after :].sum()) if after > 0 else after
        return (node.args[0], amounts, *node.args[2:])

    def _gather(self, gather: Gather) -> fx.Node:
        """Channels of the source in their new order: nothing, a slice, a pad or a gather, whichever suffices."""
        stays = self._line(gather.source, 1)
        wanted = gather.index[self._line(gather.chain[-1], 1)]
        index = np.where(wanted >= 0, (np.cumsum(stays) - 1)[wanted], -1)
        inner = index[index >= 0]
        new = self.env[gather.source]
        total = int(stays.sum())
        if len(inner) and (np.diff(inner) == 1).all():
            if len(inner) < total:
                new = self.graph.call_function(aten.slice.Tensor, (new, 1, int(inner[0]), int(inner[-1]) + 1, 1))
        else:
            name = f"channels_{gather.chain[-1].name}"
            self.indices[name] = torch.from_numpy(inner.copy()).to(self.device)
            new = self.graph.call_function(aten.index_select.default, (new, 1, self.graph.get_attr(name)))
        before = int(np.argmax(index >= 0)) if len(inner) else len(index)
        after = len(index) - before - len(inner)
        if before or after:
            space = [0, 0] * (len(gather.source.meta["shape"]) - 2)
            new = self.graph.call_function(aten.pad.default, (new, [*space, before, after]))
        return new


def _rectangular(mask: BoolArray) -> bool:
    """Whether the entries that stay form a block: each axis loses whole slices."""
    block = np.ones((1,) * mask.ndim, dtype=bool)
    for axis in range(mask.ndim):
        line = mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis), keepdims=True)
        block = block & line
    return bool((mask == block).all())


def _attach(root: nn.Module, name: str, value: nn.Module | torch.Tensor, save: bool = True) -> None:
    """Put a module or tensor under its qualified name."""
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root._modules[part]  # type: ignore[assignment]
    if isinstance(value, nn.Module):
        root.add_module(last, value)
    elif isinstance(value, nn.Parameter):
        root.register_parameter(last, value)
    else:
        root.register_buffer(last, value, persistent=save)


def _has(network: nn.Module, path: list[str]) -> bool:
    for part in path:
        if part not in network._modules:
            return False
        network = network._modules[part]  # type: ignore[assignment]
    return True
