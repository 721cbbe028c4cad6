"""A network's fused operators as torch computes them: recipes of latency tables, and modules that execute one of them.

A recipe is a little program of ATen calls on tensors of known shapes. It holds no weights: a module made of it gets
random ones, since the time of dense float arithmetic does not depend on values. ONNX Runtime's table is of the same
recipes.
"""

import operator as python_operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod, sqrt
from typing import Any, Literal

import torch
from torch import fx, nn

from backends.cuts import cropped
from backends.fusion import FusedOperator, full_shape, fuse
from backends.integers import Formats
from search_spaces.graph import ModelGraph
from search_spaces.layers import FLOAT32_BYTES, LayerSpec
from search_spaces.operators import Argument, Entries, Operator, TensorInput

Shape = tuple[int, ...]

_SIZED = frozenset({"reshape", "view", "_unsafe_view", "expand"})
"""Operators that are told the shape of their output."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor that an operator holds.

    Attributes:
        shape: its shape.
        fan_in: inputs of a weight, whose random values are scaled so that outputs stay near 1.
        positive: whether its values are above 0, as a variance is.
        values: of a table of positions, int64; empty where the values are random.
    """

    shape: Shape
    fan_in: int = 1
    positive: bool = False
    values: tuple[int, ...] = ()

    def tensor(self, generator: torch.Generator) -> torch.Tensor:
        """A tensor like it."""
        if self.values:
            return torch.tensor(self.values)
        random = torch.randn(self.shape, generator=generator) / sqrt(self.fan_in)
        return random.abs() + 0.5 if self.positive else random


@dataclass(frozen=True, slots=True)
class Value:
    """One of an operator's inputs ("x"), of its constants ("c"), or the result of one of its steps ("s")."""

    source: Literal["x", "c", "s"]
    index: int


Given = Value | int | float | bool | str | None | tuple["Given", ...]


@dataclass(frozen=True, slots=True)
class Step:
    """A call of an ATen operator ("relu.default"), or of "getitem", with arguments by name."""

    target: str
    arguments: tuple[tuple[str, Given], ...]


@dataclass(frozen=True)
class TorchOperator:
    """A fused operator, described without its weights.

    Attributes:
        kind: of its head: "conv", "depthwise", "linear", "max_pool", ...
        inputs: (shape, dtype) of the tensors it reads, batch dimension first.
        constants: of the tensors it holds.
        steps: what it computes; the last one gives the output.
        output: shape.
        work: multiply-adds, or elements of the output where there are none.
    """

    kind: str
    inputs: tuple[tuple[Shape, str], ...]
    constants: tuple[Constant, ...]
    steps: tuple[Step, ...]
    output: Shape
    work: float

    @cached_property
    def recipe(self) -> str:
        """Canonical text."""
        inputs = ",".join(f"{dtype}{_text(shape)}" for shape, dtype in self.inputs)
        constants = ",".join(_text(constant.values or constant.shape) for constant in self.constants)
        steps = "; ".join(
            f"{step.target}({','.join(f'{name}={_text(value)}' for name, value in step.arguments)})"
            for step in self.steps
        )
        return f"{self.kind}({inputs} | {constants} | {steps})"

    @property
    def traffic(self) -> float:
        """Bytes read and written."""
        shapes = [shape for shape, _ in self.inputs] + [constant.shape for constant in self.constants] + [self.output]
        return float(FLOAT32_BYTES * sum(prod(shape) for shape in shapes))

    def example_inputs(self, generator: torch.Generator) -> list[torch.Tensor]:
        """Random tensors like its inputs."""
        tensors = []
        for shape, dtype in self.inputs:
            kind = getattr(torch, dtype)
            random = torch.randn(shape, generator=generator)
            tensors.append(random.to(kind) if kind.is_floating_point else torch.zeros(shape, dtype=kind))
        return tensors

    def module(self, generator: torch.Generator) -> fx.GraphModule:
        """A module that executes it, with random weights: the same ATen calls as in an exported network."""
        root, graph = nn.Module(), fx.Graph()
        nodes = {Value("x", index): graph.placeholder(f"x{index}") for index in range(len(self.inputs))}
        for index, constant in enumerate(self.constants):
            root.register_buffer(f"c{index}", constant.tensor(generator))
            nodes[Value("c", index)] = graph.get_attr(f"c{index}")
        for index, step in enumerate(self.steps):
            found = {name: _with_nodes(value, nodes) for name, value in step.arguments}
            nodes[Value("s", index)] = graph.call_function(*_bound(step.target, found))
        graph.output(nodes[Value("s", len(self.steps) - 1)])
        return fx.GraphModule(root, graph).eval()


@dataclass(slots=True)
class TorchPart:
    """A fused operator in its network.

    Attributes:
        name: of its layer, or of its first operator where it has none.
        kernels: its recipe alone; none where it does nothing.
        price: free for whoever prices it.
    """

    name: str
    kernels: tuple[TorchOperator, ...]
    price: float | None = None


class TorchRecipes:
    """The recipes of a network's fused operators for any numbers of units, by arithmetic alone.

    Args:
        graph: the network; what it keeps does not matter.
    """

    def __init__(self, graph: ModelGraph) -> None:
        self._operators = {operator.name: operator for operator in graph.full_operators}
        self._layers = {layer.name: layer for layer in graph.full_layers}
        fused = [one for one in fuse(graph) if not _has_several_results(one.head)]
        self._fused = [(one, self._groups(one)) for one in fused]
        self._known: list[dict[tuple[int | None, ...], TorchPart]] = [{} for _ in fused]

    def recipes(self, kept: Sequence[int]) -> list[TorchOperator]:
        """What is computed where group i keeps kept[i] units, in order and with repetition; batch 1."""
        return [kernel for part in self.parts(kept) for kernel in part.kernels]

    def parts(
        self, kept: Sequence[int], formats: Formats | None = None, kernels: Mapping[str, int] = {}
    ) -> list[TorchPart]:
        """The same operator by operator, in float32 whatever the formats, some kernels so wide; parts that are alike
        are one object."""
        layers = cropped(self._layers, kernels)
        found = []
        for (fused, groups), known in zip(self._fused, self._known, strict=True):
            key = kernels.get(fused.head.layer or ""), *(kept[group] for group in groups)
            if key not in known:
                recipe = _Writer(self._operators, layers, kept).write(fused)
                # a dropout on its own does nothing, and what depends on no input is computed beforehand
                computed = (recipe,) if recipe.steps and recipe.inputs else ()
                known[key] = TorchPart(fused.head.layer or fused.head.name, computed)
            found.append(known[key])
        return found

    def _groups(self, fused: FusedOperator) -> tuple[int, ...]:
        """The channel groups that the recipe depends on."""
        found: set[int] = set()
        for operator in (fused.head, *fused.tail):
            for each in (operator, *(self._operators[name] for name in operator.inputs)):
                found.update(group for group, _ in each.extent.terms)
            layer = self._layers.get(operator.layer or "")
            if layer is not None:
                found.update(group for extent in (layer.in_extent, layer.out_extent) for group, _ in extent.terms)
            found.update(group for entries in _entries(operator.arguments) for group, _ in entries.units)
            if operator.kind == "channel_gather":
                places = (*_places(operator, "source"), *_places(operator, "result"))
                found.update(group for group, _ in places if group >= 0)
        return tuple(sorted(found))


class _Writer:
    """Writes the recipe of one fused operator."""

    def __init__(self, operators: Mapping[str, Operator], layers: Mapping[str, LayerSpec], kept: Sequence[int]) -> None:
        self.operators, self.layers, self.kept = operators, layers, kept
        self.inputs: list[tuple[Shape, str]] = []
        self.constants: list[Constant] = []
        self.steps: list[Step] = []
        self.values: dict[str, Value] = {}
        self.work = 0

    def write(self, fused: FusedOperator) -> TorchOperator:
        """The recipe."""
        for operator in (fused.head, *fused.tail):
            self._operator(operator)
        taken = fused.head.kind == "getitem"  # one of the results of what it reads
        head = self.operators[fused.head.inputs[0]] if taken else fused.head
        layer = self.layers.get(head.layer or "")
        output = self._shape(fused.output)
        return TorchOperator(
            kind="depthwise" if layer is not None and layer.depthwise else head.kind,
            inputs=tuple(self.inputs),
            constants=tuple(self.constants),
            steps=tuple(self.steps),
            output=output,
            work=float(self.work or prod(output)),
        )

    def _operator(self, operator: Operator) -> None:
        layer = self.layers.get(operator.layer or "")
        if layer is not None and operator.kind in ("conv", "conv_transpose", "linear"):
            self._layer(operator, layer)
        elif operator.kind == "batch_norm":
            self._batch_norm(operator)
        elif operator.kind == "channel_gather":
            self._gather(operator)
        elif not operator.target and operator.kind != "getitem":  # a module that does nothing in evaluation
            self.values[operator.name] = self._read(operator.inputs[0])
        elif operator.kind == "getitem":
            index = self._given(operator.argument("index"), operator)
            self._step(operator, "getitem", {"self": self._read(operator.inputs[0]), "index": index})
        else:
            found = {name: self._given(value, operator) for name, value in operator.arguments}
            for name in ("shape", "size"):
                if name in found and operator.kind in _SIZED:
                    found[name] = self._shape(operator)
            self._step(operator, operator.target, found)

    def _layer(self, operator: Operator, layer: LayerSpec) -> None:
        inputs, outputs = layer.in_extent.size(self.kept), layer.out_extent.size(self.kept)
        groups = inputs if layer.depthwise else layer.groups
        source = self._read(operator.inputs[0])
        if layer.kind == "linear":
            shape: Shape = (outputs, inputs)
        elif layer.kind == "conv":
            shape = (outputs, inputs // groups, *layer.kernel)
        else:
            shape = (inputs, outputs // groups, *layer.kernel)
        result = self._shape(operator)
        places = result[:-1] if layer.kind == "linear" else result[2:]
        if layer.kind == "conv_transpose":
            places = self._shape(self.operators[operator.inputs[0]])[2:]
        self.work += prod(shape) * prod(places)
        found: dict[str, Given] = {
            "input": source,
            "weight": self._constant(Constant(shape, fan_in=prod(shape) // shape[0])),
            "bias": self._constant(Constant((outputs,))) if layer.bias else None,
        }
        if layer.kind == "linear":
            self._step(operator, "linear.default", found)
            return
        found |= {"stride": layer.stride, "padding": layer.padding}
        if layer.kind == "conv":
            found |= {"dilation": layer.dilation, "groups": groups}
            self._step(operator, f"conv{len(layer.kernel)}d.default", found)
            return
        whole = ((size - 1) * stride for size, stride in zip(places, layer.stride, strict=True))
        around = zip(layer.kernel, layer.dilation, layer.padding, strict=True)
        covered = [size + (k - 1) * d + 1 - 2 * p for size, (k, d, p) in zip(whole, around, strict=True)]
        rest = tuple(size - other for size, other in zip(result[2:], covered, strict=True))
        found |= {"output_padding": rest, "groups": groups, "dilation": layer.dilation}
        self._step(operator, f"conv_transpose{len(layer.kernel)}d.input", found)

    def _batch_norm(self, operator: Operator) -> None:
        source = self._read(operator.inputs[0])
        channels = (self._shape(operator)[1],)
        found: dict[str, Given] = {"input": source}
        for name in ("weight", "bias", "running_mean", "running_var"):
            found[name] = self._constant(Constant(channels, positive=name == "running_var"))
        found |= {"training": False, "momentum": 0.1, "eps": 1e-5, "cudnn_enabled": True}
        self._step(operator, "batch_norm.default", found)

    def _gather(self, operator: Operator) -> None:
        """As the pruned network does: nothing, a slice or a table of positions, and zeros around it."""
        index = operator.argument("index")
        stays = [group < 0 or unit < self.kept[group] for group, unit in _places(operator, "source")]
        keeps = [group < 0 or unit < self.kept[group] for group, unit in _places(operator, "result")]
        place = [count - 1 for count in accumulate(stays)]
        wanted = [int(entry) for entry, keep in zip(index, keeps, strict=True) if keep]  # type: ignore[arg-type]
        inner = [place[entry] for entry in wanted if entry >= 0]
        before = next((position for position, entry in enumerate(wanted) if entry >= 0), len(wanted))
        after = len(wanted) - before - len(inner)
        source = self._read(operator.inputs[0])
        if inner and inner == list(range(inner[0], inner[0] + len(inner))):
            found: dict[str, Given] = {"dim": 1, "start": inner[0], "end": inner[-1] + 1, "step": 1}
            self._step(operator, "slice.Tensor", {"self": source, **found})
        else:
            positions = self._constant(Constant((len(inner),), values=tuple(inner)))
            self._step(operator, "index_select.default", {"self": source, "dim": 1, "index": positions})
        if before or after:
            around = (0, 0) * (len(self._shape(operator)) - 2)
            found = {"self": self._read(operator.name), "pad": (*around, before, after), "value": 0.0}
            self._step(operator, "constant_pad_nd.default", found)

    def _step(self, operator: Operator, target: str, given: Mapping[str, Given]) -> None:
        self.steps.append(Step(target, tuple(given.items())))
        self.values[operator.name] = Value("s", len(self.steps) - 1)

    def _read(self, name: str) -> Value:
        """An operator's value; one that is not computed here is an input or a constant."""
        if name not in self.values:
            operator = self.operators[name]
            if _has_several_results(operator):  # whoever takes one of them computes them all
                self._operator(operator)
            elif operator.constant:
                self.values[name] = self._constant(Constant(self._shape(operator)))
            else:
                self.inputs.append((self._shape(operator), operator.dtype))
                self.values[name] = Value("x", len(self.inputs) - 1)
        return self.values[name]

    def _constant(self, constant: Constant) -> Value:
        self.constants.append(constant)
        return Value("c", len(self.constants) - 1)

    def _given(self, value: Argument, operator: Operator) -> Given:
        if isinstance(value, TensorInput):
            return self._read(operator.inputs[value.index])
        if isinstance(value, Entries):
            return value.count(self.kept)
        if isinstance(value, tuple):
            return tuple(self._given(item, operator) for item in value)
        return value

    def _shape(self, operator: Operator) -> Shape:
        shape = full_shape(operator)
        if operator.axis is None or not operator.extent.terms:
            return shape
        axis = operator.axis + operator.batched
        return (*shape[:axis], operator.extent.size(self.kept), *shape[axis + 1 :])


def _has_several_results(operator: Operator) -> bool:
    return operator.dtype in ("", "None")


def _entries(value: object) -> Iterator[Entries]:
    if isinstance(value, Entries):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _entries(item)


def _places(operator: Operator, side: Literal["source", "result"]) -> tuple[tuple[int, int], ...]:
    """(group, unit) of each channel that a channel gather reads or gives."""
    return operator.argument(side)  # type: ignore[return-value]


def _text(value: Given) -> str:
    if isinstance(value, Value):
        return f"{value.source}{value.index}"
    if isinstance(value, tuple):
        return "[" + ",".join(_text(item) for item in value) + "]"
    return repr(value)


def _with_nodes(value: Given, nodes: Mapping[Value, fx.Node]) -> Any:
    if isinstance(value, Value):
        return nodes[value]
    if isinstance(value, tuple):
        return [_with_nodes(item, nodes) for item in value]
    if isinstance(value, str) and value.startswith("torch."):  # a dtype, layout or memory format
        return getattr(torch, value.removeprefix("torch."))
    return value


def _bound(target: str, given: Mapping[str, Any]) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """The function, its positional and its keyword arguments, as torch's own exporter writes them."""
    if target == "getitem":
        return python_operator.getitem, (given["self"], given["index"]), {}
    name, _, overload = target.partition(".")
    function = getattr(getattr(torch.ops.aten, name), overload)
    schema = [argument for argument in function._schema.arguments if argument.name in given]
    positional = tuple(given[argument.name] for argument in schema if not argument.kwarg_only)
    return function, positional, {argument.name: given[argument.name] for argument in schema if argument.kwarg_only}
