"""Which kernels a policy's network is made of, by arithmetic alone, thousands of times a second.

What a fused operator becomes depends on the layouts of what it reads and on the channel groups in its own shapes;
under these it is planned once and remembered.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

from backends.cuts import cropped
from backends.fusion import FusedOperator
from backends.integers import Formats
from backends.tvm.kernels.base import Kernel
from backends.tvm.lowering.plan import Call, Planner, Structure
from backends.tvm.lowering.rest import lower_rest
from backends.tvm.lowering.rules import RULES
from backends.tvm.lowering.storage import FLOAT, Storage
from backends.tvm.lowering.values import Value
from backends.tvm.stock import StockOperator
from backends.tvm.target import Cpu
from search_spaces.graph import ModelGraph
from search_spaces.operators import Entries, Operator


@dataclass(slots=True)
class Part:
    """What one fused operator became.

    Attributes:
        name: of its layer, or of the operator where it has none.
        kernels: what computes it; empty where nothing has to be.
        price: free for whoever prices the kernels, None until then.
        value: its layout.
        token: number of that layout.
    """

    name: str
    kernels: tuple[Kernel | StockOperator, ...]
    value: Value
    token: int
    price: float | None = None


class NetworkRecipes:
    """The kernels of every network that a search space holds.

    Args:
        graph: the uncompressed network.
        cpu: the processor that code is for.
        batch: images at once.
    """

    def __init__(self, graph: ModelGraph, cpu: Cpu, batch: int = 1) -> None:
        self._structure = Structure.of(graph)
        self._cpu = cpu
        self._batch = batch
        self._memory: dict[tuple[Any, ...], Part] = {}
        self._tokens: dict[Value, int] = {}
        self._sites = [self._site(fused) for fused in self._structure.fused]

    def parts(self, kept: Sequence[int], formats: Formats | None = None, kernels: Mapping[str, int] = {}) -> list[Part]:
        """The network where group i keeps kept[i] units, in the order of execution; equal parts are one object.

        Args:
            kept: units of each group.
            formats: of the layers that have other numbers than float32.
            kernels: how wide the kernels of layers are that are cropped.

        Raises:
            TrimtabError: an operator that nothing can compute.
        """
        storage = self._structure.storage.storage(formats) if formats else FLOAT
        found: list[Part] = []
        tokens: dict[str, int] = {self._structure.input.name: 0}
        values: dict[str, Value] = {}
        planner: Planner | None = None
        for index, (fused, reads, shape) in enumerate(self._sites):
            stored = fused.head.layer in storage.integer, storage.grids.get(fused.output.name)
            key = (index, shape(kept), stored, kernels.get(fused.head.layer or ""), *[tokens[name] for name in reads])
            part = self._memory.get(key)
            if part is None:
                planner = planner or self._planner(kept, values, storage, kernels)
                part = self._memory[key] = self._plan(planner, fused)
            tokens[fused.output.name] = part.token
            values[fused.output.name] = part.value
            found.append(part)
        token = tokens[self._structure.output]
        part = self._memory.get((token,))
        if part is None:
            planner = planner or self._planner(kept, values, storage, kernels)
            before = len(planner.steps)
            planner.finish()
            part = self._memory[(token,)] = Part("output", _kernels(planner, before), (), 0)
        found.append(part)
        return found

    def recipes(self, kept: Sequence[int], formats: Formats | None = None) -> list[Kernel | StockOperator]:
        """All kernels, in the order of execution, as often as they are called."""
        return [kernel for part in self.parts(kept, formats) for kernel in part.kernels]

    def _planner(
        self, kept: Sequence[int], values: dict[str, Value], storage: Storage, kernels: Mapping[str, int]
    ) -> Planner:
        structure = replace(self._structure, layers=cropped(self._structure.layers, kernels))
        planner = Planner(structure, self._cpu, RULES, lower_rest, tuple(kept), self._batch, storage)
        planner.begin()
        values.update(planner.values)
        planner.values = values
        return planner

    def _plan(self, planner: Planner, fused: FusedOperator) -> Part:
        before = len(planner.steps)
        value = planner.lower(fused)
        token = self._tokens.setdefault(value, len(self._tokens) + 1)
        return Part(fused.head.layer or fused.head.name, _kernels(planner, before), value, token)

    def _site(self, fused: FusedOperator) -> tuple[FusedOperator, tuple[str, ...], Callable[[Sequence[int]], Any]]:
        """The operator, the values that it reads, and what of the kept units its own shapes depend on."""
        operators = self._structure.operators
        reads = tuple(name for name in fused.inputs if not operators[name].constant)
        groups = sorted({group for operator in (fused.head, *fused.tail) for group in self._groups(operator)})
        return fused, reads, itemgetter(*groups) if groups else _nothing

    def _groups(self, operator: Operator) -> set[int]:
        layer = self._structure.layers.get(operator.layer or "")
        extents = [operator.extent, *([layer.in_extent, layer.out_extent] if layer is not None else [])]
        found = {group for extent in extents for group, _ in extent.terms}
        for name, argument in operator.arguments:
            for item in argument if isinstance(argument, tuple) else (argument,):
                if isinstance(item, Entries):
                    found |= {group for group, _ in item.units}
            if operator.kind == "channel_gather" and name in ("source", "result") and isinstance(argument, tuple):
                found |= {place[0] for place in argument if isinstance(place, tuple) and place[0] >= 0}  # type: ignore[operator,misc]
        return found


def _kernels(planner: Planner, start: int) -> tuple[Kernel | StockOperator, ...]:
    return tuple(step.kernel for step in planner.steps[start:] if isinstance(step, Call))


def _nothing(_: Sequence[int]) -> tuple[()]:
    return ()
