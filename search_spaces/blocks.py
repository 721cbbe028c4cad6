"""Residual blocks that can be left out: out = x + branch(x) becomes out = x.

The branch adds to what it reads, so without it every shape stays as it is and the network computes exactly what it
would if the branch gave zeros. Where the other side of the sum is no identity (a projection, a padded shortcut), the
block changes the shape and has to stay.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from search_spaces.graph import ModelGraph
from search_spaces.operators import Block, Operator


def residual_blocks(graph: ModelGraph) -> tuple[Block, ...]:
    """The residual blocks that can be removed, in the order of their sums.

    A branch starts at what the sum adds it to and nowhere else, ends in the sum and nowhere else, and holds at least
    one layer that it alone calls.
    """
    readers: dict[str, set[str]] = {}
    for operator in graph.full_operators:
        for name in operator.inputs:
            readers.setdefault(name, set()).add(operator.name)
    operators = {operator.name: operator for operator in graph.full_operators}
    found = []
    for operator in graph.full_operators:
        for identity in (0, 1) if _adds(operator, operators) else ():
            branch = _branch(operator, identity, operators, readers)
            block = _block(operator, identity, branch, graph) if branch else None
            if block is not None:
                found.append(block)
                break
    return _named_apart(found)


def _adds(operator: Operator, operators: Mapping[str, Operator]) -> bool:
    """Whether an operator adds two tensors of its own shape, neither of them scaled."""
    sides = [operators[name] for name in operator.inputs]
    return (
        operator.kind == "add"
        and len(sides) == 2
        and operator.argument("alpha") in (None, 1)
        and all((side.shape, side.dtype) == (operator.shape, operator.dtype) for side in sides)
    )


def _branch(
    total: Operator, identity: int, operators: Mapping[str, Operator], readers: Mapping[str, set[str]]
) -> set[str]:
    """Names of the operators between the one side of a sum and the other; empty where they are no branch of it."""
    start, end = total.inputs[identity], total.inputs[1 - identity]
    found: set[str] = set()
    waiting = [end]
    reaches = False
    while waiting:
        name = waiting.pop()
        if name == start:
            reaches = True
        elif name not in found:
            if operators[name].kind == "input":  # past the start: there is another way in
                return set()
            found.add(name)
            waiting += operators[name].inputs
    inside = found | {total.name}
    for operator in reversed(list(operators.values())):  # constants that others read stay; so does what only they read
        name = operator.name
        if name in found and not readers[name] <= inside:
            if not operator.constant:
                return set()
            found.remove(name)
            inside.remove(name)
    return found if reaches else set()


def _block(total: Operator, identity: int, branch: set[str], graph: ModelGraph) -> Block | None:
    """The block of a branch; None where it has no layer, or shares one with the rest of the network."""
    modules = {operator.layer for operator in graph.full_operators if operator.name in branch and operator.layer}
    outside = {operator.layer for operator in graph.full_operators if operator.name not in branch}
    layers = tuple(layer.name for layer in graph.full_layers if layer.name in modules)
    if not layers or modules & outside:
        return None
    names = tuple(operator.name for operator in graph.full_operators if operator.name in branch)
    path = _common_path(modules)
    shared = any(f"{name}.".startswith(f"{path}.") for name in outside if name)
    return Block(path if path and not shared else layers[0], names, layers, total.name, identity)


def _common_path(modules: Iterable[str]) -> str:
    """The longest path of modules that all of these lie in; of a single one its own."""
    first, *others = (name.split(".") for name in modules)
    path = first
    for other in others:
        same = [one == two for one, two in zip(path, other, strict=False)]
        path = path[: (*same, False).index(False)]
    return ".".join(path)


def _named_apart(blocks: list[Block]) -> tuple[Block, ...]:
    """One inside of another may have the same layers."""
    names = [block.name for block in blocks]
    return tuple(
        replace(block, name=f"{name}#{earlier + 1}") if (earlier := names[:index].count(name)) else block
        for index, (block, name) in enumerate(zip(blocks, names, strict=True))
    )
