"""The normal form of a captured network, and how to read its nodes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from search_spaces.recurrent import Recurrent, matrices

Weighted = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d

FUNCTIONS = {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear"}
"""Operators that are layers, whether a module holds their weights or not."""

PADS = ("pad", "constant_pad_nd")


@dataclass
class Template:
    """A network in eval mode whose layers are modules and whose other operators are functional ATen operators.

    Node metadata: "shape" (of the trace), "sizes" (the same, in terms of the batch) and "dtype"; "batch_axis", the
    dimension that is the batch (None where none is), and "batched", whether that is dimension 0; "items", the shapes
    where a node has several outputs; "where", the module whose code it is; "fed", whether it depends on the input.

    Attributes:
        graph: the operators; each layer a `call_module` node.
        modules: layers and dropouts by qualified name, holding the network's own tensors.
        tensors: parameters, buffers and constants that no layer holds (or subgraphs), by qualified name.
        saved: those of `tensors` that belong in a state dict.
        batch: batch size of the trace.
        any_batch: whether other batch sizes work too.
        batch_symbol: what stands for the batch size in "sizes"; None where it is fixed.
    """

    graph: fx.Graph
    modules: dict[str, nn.Module]
    tensors: dict[str, Tensor | nn.Module]
    saved: set[str]
    batch: int
    any_batch: bool
    batch_symbol: Any = None

    def shape(self, node: fx.Node, batch: int) -> tuple[int, ...]:
        """Shape of a node's output for that batch size; where that is fixed, for the trace's."""
        if self.batch_symbol is None:
            return tuple(node.meta["shape"])
        return tuple(
            size if isinstance(size, int) else int(size.subs(self.batch_symbol, batch)) for size in node.meta["sizes"]
        )

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a `call_module` node runs."""
        return self.modules[str(node.target)]

    def layers_of(self, name: str) -> dict[str, str]:
        """The layers that a module holds, by name, and the qualified names of their weights."""
        module = self.modules[name]
        if isinstance(module, Recurrent):
            return {f"{name}.{matrix.weight}": f"{name}.{matrix.weight}" for matrix in matrices(module)}
        return {name: f"{name}.weight"} if isinstance(module, Weighted) else {}

    def weight_name(self, layer: str) -> str:
        """Qualified name of a layer's weight: "conv1.weight" of layer "conv1"; a matrix of a recurrent layer goes
        by the name of its parameter."""
        return f"{layer}.weight" if layer in self.modules else layer


def op_name(node: fx.Node) -> str:
    """Name of the ATen operator without its overload ("conv2d"); "" for anything else."""
    if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten":
        return str(node.target._schema.name).split("::")[1]
    return ""


def target_name(node: fx.Node) -> str:
    """Name of the ATen operator with its overload ("conv2d.default"); "" for anything else."""
    if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten":
        return f"{op_name(node)}.{node.target._overloadname}"
    return ""


def arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments of an operator node by name, defaults filled in; empty for other nodes."""
    found: dict[str, Any] = {}
    if isinstance(node.target, torch._ops.OpOverload):
        for position, argument in enumerate(node.target._schema.arguments):
            if position < len(node.args):
                found[argument.name] = node.args[position]
            elif argument.name in node.kwargs:
                found[argument.name] = node.kwargs[argument.name]
            else:
                found[argument.name] = argument.default_value if argument.has_default_value() else None
    return found


def source_of(node: fx.Node) -> fx.Node:
    """The first node that a node reads."""
    return node.all_input_nodes[0]


def weight_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Tensors that only serve as weight or bias of a function: a layer without a module of its own."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node.meta.get("fed") or not node.users:
            continue
        if all(user in found or (op_name(user) in FUNCTIONS and node is not source_of(user)) for user in node.users):
            found.add(node)
    return found


def drop_unused(graph: fx.Graph) -> None:
    """Remove the nodes whose result nobody reads."""
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)
