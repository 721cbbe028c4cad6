"""Reading the nodes of an exported program: sizes, aliases, the module whose code a node is."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from search_spaces.template import op_name

_MAY_ALIAS = {"reshape", "flatten", "contiguous", "dropout", "to", "type_as", "expand_as", "view_as", "unflatten"}


def owner(node: fx.Node) -> str:
    """Qualified name of the module whose code a node is; "" for the network's own."""
    stack = [name for name, _ in node.meta.get("nn_module_stack", {}).values()]
    return stack[-1].split("@")[0] if stack and not stack[-1].startswith("_empty") else ""


def aliases(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """For each node, those that may share its memory, itself included."""
    classes: dict[fx.Node, list[fx.Node]] = {}
    for node in nodes:
        shares = node.target is operator.getitem or op_name(node) in _MAY_ALIAS
        if isinstance(node.target, torch._ops.OpOverload):
            shares |= any(result.alias_info is not None for result in node.target._schema.returns)
        group = classes[node.all_input_nodes[0]] if shares and node.all_input_nodes else []
        group.append(node)
        classes[node] = group
    return classes


def hint(size: Any) -> int:
    """A size as a number; the batch's as in the trace."""
    return size if isinstance(size, int) else int(size.node.hint)


def hints(value: Tensor) -> tuple[int, ...]:
    """The sizes of a tensor as numbers."""
    return tuple(hint(size) for size in value.shape)


def expressions(value: Tensor) -> tuple[Any, ...]:
    """The sizes of a tensor; those that depend on the batch as expressions of it."""
    return tuple(size if isinstance(size, int) else size.node.expr for size in value.shape)


def each(value: Any, length: int) -> tuple[int, ...]:
    """An ATen size argument, which may hold one number for all dimensions."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * length if len(values) == 1 else values


def bound(value: Any, size: int, default: int) -> int:
    """A slice's bound as Python reads it."""
    if value is None:
        return default
    return max(0, min(size, int(value) + size if value < 0 else int(value)))
