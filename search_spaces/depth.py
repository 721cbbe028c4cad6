"""Depth as a decision: of a row of residual blocks the first ones stay.

What is decided of a block that is left out means nothing. Such a decision is not *active*; two points that differ in
those alone stand for one policy.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import product
from math import prod
from typing import Protocol

import numpy as np
import numpy.typing as npt

from search_spaces.blocks import residual_blocks
from search_spaces.graph import ModelGraph
from search_spaces.operators import Block

DEPTH = "depth"
"""The dimension. A decision's targets are the blocks of a row, its choices how many of them stay."""


def rows_of_blocks(graph: ModelGraph) -> list[tuple[Block, ...]]:
    """The residual blocks that can go, in rows: each block of a row reads what the one before it gives."""
    rows: list[list[Block]] = []
    for block in residual_blocks(graph):
        if rows and _source(graph, block) == rows[-1][-1].sum:
            rows[-1].append(block)
        else:
            rows.append([block])
    return [tuple(row) for row in rows]


def _source(graph: ModelGraph, block: Block) -> str:
    """What a block reads, past what only looks at it: an activation behind a sum belongs to the block before."""
    operators = {operator.name: operator for operator in graph.full_operators}
    name = operators[block.sum].inputs[block.identity]
    while operators[name].kind != "add" and len(operators[name].inputs) == 1 and operators[name].layer is None:
        name = operators[name].inputs[0]
    return name


class AnyDecision(Protocol):
    """A decision; see `search_spaces.space`."""

    @property
    def dimension(self) -> str:
        """What is decided."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Of what."""

    @property
    def choices(self) -> tuple[int, ...]:
        """The cheapest first."""


class Depths:
    """What the depths among a space's decisions leave out.

    Args:
        graph: the whole network.
        decisions: of the space.
    """

    def __init__(self, graph: ModelGraph, decisions: Sequence[AnyDecision]) -> None:
        self._graph = graph
        self._decisions = decisions
        self._numbers = [number for number, each in enumerate(decisions) if each.dimension == DEPTH]

    def __bool__(self) -> bool:
        return bool(self._numbers)

    @cached_property
    def blocks(self) -> Mapping[str, Block]:
        """Those that may go, by name."""
        names = {name for number in self._numbers for name in self._decisions[number].targets}
        if not names:  # finding blocks takes a walk through the network for every sum
            return {}
        return {block.name: block for block in residual_blocks(self._graph) if block.name in names}

    @cached_property
    def _places(self) -> Mapping[str, tuple[int, int]]:
        """Number of the decision about it, and its place in that one's row, by the name of a block."""
        return {
            name: (number, place)
            for number in self._numbers
            for place, name in enumerate(self._decisions[number].targets)
        }

    @cached_property
    def _block_of_layer(self) -> Mapping[str, str]:
        return {layer: name for name, block in self.blocks.items() for layer in block.layers}

    @cached_property
    def _block_of_group(self) -> Mapping[str, str]:
        """Of the channel groups that lie in a block with all that gives and reads them."""
        found = {}
        for group in self._graph.groups:
            owners = {self._block_of_layer.get(layer) for layer in (*group.producers, *group.consumers)}
            owner = owners.pop()
            if owner is not None and not owners:
                found[group.name] = owner
        return found

    @cached_property
    def layers(self) -> Mapping[str, tuple[int, int]]:
        """Number of the decision that a layer goes with, and the least depth at which it stays, less one."""
        return {layer: self._places[name] for name, block in self.blocks.items() for layer in block.layers}

    @cached_property
    def _asked_by(self) -> list[list[tuple[int, int]] | None]:
        """Of each decision the places of the blocks that it is about; None where it is about more than blocks."""
        found: list[list[tuple[int, int]] | None] = []
        for decision in self._decisions:
            blocks = self._block_of_group if decision.dimension == "channels" else self._block_of_layer
            owners = [blocks[target] for target in decision.targets if target in blocks]
            known = decision.dimension != DEPTH and owners and len(owners) == len(decision.targets)
            found.append([self._places[owner] for owner in owners] if known else None)
        return found

    def active(self, points: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which decisions of points [P, D] mean anything, [P, D]."""
        found = np.ones(points.shape, dtype=np.bool_)
        stay = {number: np.array(self._decisions[number].choices)[points[:, number]] for number in self._numbers}
        for column, places in enumerate(self._asked_by):
            if places is not None:
                found[:, column] = np.any([stay[number] > place for number, place in places], axis=0)
        return found

    def gone(self, point: npt.NDArray[np.int64]) -> list[str]:
        """Names of the blocks that a point [D] leaves out."""
        return [
            name
            for number in self._numbers
            for name in self._decisions[number].targets[self._decisions[number].choices[point[number]] :]
        ]

    @property
    def size(self) -> int:
        """Number of policies: of points that differ in what is active."""
        counts = [len(each.choices) for each in self._decisions]
        always = prod(
            count
            for count, places, each in zip(counts, self._asked_by, self._decisions, strict=True)
            if places is None and each.dimension != DEPTH
        )
        total = always
        for rows in self._components():
            ways = 0
            about = [
                (count, places)
                for count, places in zip(counts, self._asked_by, strict=True)
                if places is not None and places[0][0] in rows
            ]
            for chosen in product(*(self._decisions[number].choices for number in rows)):
                stay = dict(zip(rows, chosen, strict=True))
                active = (count for count, places in about if any(stay[number] > place for number, place in places))
                ways += prod(active)
            total *= ways
        return total

    def _components(self) -> list[list[int]]:
        """Depth decisions, together where a decision asks for both."""
        found = [{number} for number in self._numbers]
        for places in self._asked_by:
            asked = {number for number, _ in places or ()}
            touched = [each for each in found if each & asked]
            if len(touched) > 1:
                found = [each for each in found if not each & asked] + [set().union(*touched)]
        return [sorted(each) for each in found]
