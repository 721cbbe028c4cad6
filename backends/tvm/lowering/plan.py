"""The walk over a network's fused operators that chooses the kernels which compute them.

Each fused operator is offered to the rule of its head's kind, which calls kernels and gives the value in whatever
layout suits it. Planning is arithmetic on shapes: constants are promised, not computed, so the same walk serves the
compiler (`backends.tvm.emit`) and the pricing of thousands of policies (`backends.tvm.recipes`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from backends.fusion import FusedOperator, fuse
from backends.integers import Formats, LayerIntegers
from backends.tvm.kernels.base import Kernel, block_count
from backends.tvm.kernels.integer.border import NO_BORDER, Border, Framed
from backends.tvm.kernels.integer.quantise import Dequantise, Quantise
from backends.tvm.kernels.movement import Gather, GatherFeatures, Pack, Unpack
from backends.tvm.kernels.rearrange import Rearrange
from backends.tvm.lowering.channels import ZERO, Channels
from backends.tvm.lowering.grids import Grid
from backends.tvm.lowering.storage import FLOAT, Storage, StoragePlanner, moves_codes
from backends.tvm.lowering.values import MAP, Buffer, Constant, Cropped, Matrix, Packed, Plain, Value
from backends.tvm.stock import StockOperator
from backends.tvm.target import Cpu
from search_spaces.graph import ModelGraph
from search_spaces.layers import LayerSpec
from search_spaces.operators import Argument, Entries, Operator

Array = npt.NDArray[Any]


class Tensors(Protocol):
    """The constants of a network, by name."""

    def layer(self, operator: Operator) -> tuple[Array, Array | None]:
        """Weight and bias of a convolution or linear layer."""

    def batch_norm(self, operator: Operator) -> tuple[Array, Array]:
        """Scale and shift [C] of a batch norm in evaluation, float64."""

    def constant(self, name: str) -> Array:
        """Value of an operator that depends on no input."""

    def integers(self, layer: str) -> LayerIntegers:
        """Of a layer that computes in 8-bit integers."""


Promise = Callable[[Tensors], Array]
"""A constant, computed only when code is made."""


@dataclass(frozen=True, slots=True)
class Call:
    """A kernel on operands; writes `result`."""

    kernel: Kernel | StockOperator
    operands: tuple[Buffer | Promise, ...]
    result: Buffer


@dataclass(frozen=True, slots=True)
class Reshape:
    """The same memory under another shape."""

    source: Buffer
    result: Buffer


_Coded = TypeVar("_Coded", Packed, Matrix)
Step = Call | Reshape
Rule = Callable[["Planner", FusedOperator], Value | None]
"""Lowers a fused operator, or gives None where it cannot; then it has called nothing."""


@dataclass(frozen=True)
class Structure:
    """What does not depend on a policy.

    Attributes:
        graph: the uncompressed network.
        fused: its operators, in order.
        operators, layers: of the uncompressed network, by name.
    """

    graph: ModelGraph
    fused: tuple[FusedOperator, ...]
    operators: Mapping[str, Operator]
    layers: Mapping[str, LayerSpec]

    @classmethod
    def of(cls, graph: ModelGraph) -> "Structure":
        """The structure of a graph."""
        operators = {operator.name: operator for operator in graph.full_operators}
        return cls(graph, fuse(graph), operators, {layer.name: layer for layer in graph.full_layers})

    @cached_property
    def storage(self) -> StoragePlanner:
        """Decides how values are stored under any formats of the layers."""
        return StoragePlanner(self.fused, self.layers, self.output)

    @property
    def input(self) -> Operator:
        """The network's input."""
        return next(operator for operator in self.operators.values() if operator.kind == "input")

    @property
    def output(self) -> str:
        """The operator whose value the network gives."""
        return next(operator for operator in self.operators.values() if operator.kind == "output").inputs[0]


class Planner:
    """One walk over a network whose channel groups keep so many units.

    Args:
        structure: of the network.
        cpu: the processor that code is for.
        rules: by kind of operator.
        rest: lowers what none of them takes.
        kept: units that each channel group keeps.
        batch: images at once.
        storage: which layers compute in integers, and how values are stored.

    Attributes:
        values: of the operators lowered so far, by the name of their last part.
        steps: what computes them, in order.
        fallbacks: kinds of the operators left to stock TVM, as often as they occurred.
    """

    def __init__(
        self,
        structure: Structure,
        cpu: Cpu,
        rules: Mapping[str, Rule],
        rest: Callable[["Planner", FusedOperator], Value],
        kept: Sequence[int],
        batch: int = 1,
        storage: Storage = FLOAT,
    ) -> None:
        self.structure = structure
        self.cpu = cpu
        self.kept = kept
        self.batch = batch
        self.storage = storage
        self.values: dict[str, Value] = {}
        self.steps: list[Step] = []
        self.fallbacks: list[str] = []
        self._rules = rules
        self._rest = rest
        self._packed: dict[int, Packed] = {}
        self._reads_codes = False

    def begin(self) -> Plain:
        """The network's input."""
        shape = (self.batch, *self.structure.graph.input_shape)
        value = Plain(Buffer(shape), shape)
        self.values[self.structure.input.name] = value
        return value

    def lower(self, fused: FusedOperator) -> Value:
        """Lowers one fused operator; those that it reads must have been."""
        integer = fused.head.layer in self.storage.integer
        rule = self._rules.get("integer" if integer else fused.head.kind)
        self._reads_codes = integer or moves_codes(fused)
        value = rule(self, fused) if rule is not None else None
        self._reads_codes = False
        if value is None:
            value = self._rest(self, fused)
        if (grid := self.storage.grids.get(fused.output.name)) is not None:
            value = self.quantised(value, grid) or value
        self.values[fused.output.name] = value
        return value

    def finish(self) -> Buffer:
        """The network's output as torch stores it."""
        return self.plain(self.values[self.structure.output]).buffer

    # -- what rules ask --------------------------------------------------------------------------------------------

    def value(self, name: str) -> Value:
        """The value of an operator, in float32 but for rules that read codes; a constant as torch stores it is not
        among them, see `constant`."""
        value = self.values[name]
        return value if self._reads_codes else self.dequantised(value)

    def source(self, fused: FusedOperator, index: int = 0) -> Value:
        """The value of the head's input of that index, no longer cropped."""
        value = self.value(fused.head.inputs[index])
        return self.moved(value) if isinstance(value, Cropped) else value

    def operator(self, name: str) -> Operator:
        """An operator of the uncompressed network."""
        return self.structure.operators[name]

    def shape(self, operator: Operator) -> tuple[int, ...]:
        """Shape of an operator's output under the policy, batch dimension included."""
        shape = operator.shape
        if operator.axis is not None and operator.extent.terms:
            size = operator.extent.size(self.kept)
            shape = (*shape[: operator.axis], size, *shape[operator.axis + 1 :])
        return (self.batch, *shape) if operator.batched else shape

    def size(self, argument: Argument) -> int:
        """A number among the arguments, under the policy."""
        if isinstance(argument, Entries):
            return argument.count(self.kept)
        if not isinstance(argument, int):
            raise TypeError(f"{argument!r} is no number known in advance")
        return argument

    def layer(self, operator: Operator) -> LayerSpec:
        """The layer whose weights an operator uses, under the policy."""
        spec = self.structure.layers[operator.layer or ""]
        if not (spec.in_extent.terms or spec.out_extent.terms):
            return spec
        inputs, outputs = spec.in_extent.size(self.kept), spec.out_extent.size(self.kept)
        groups = inputs if spec.depthwise else spec.groups
        return replace(spec, in_channels=inputs, out_channels=outputs, groups=groups)

    # -- what rules use --------------------------------------------------------------------------------------------

    def call(self, kernel: Kernel | StockOperator, *operands: Buffer | Promise) -> Buffer:
        """Calls a kernel."""
        dtype = kernel.output[1] if isinstance(kernel, StockOperator) else kernel.output_dtype
        result = Buffer(kernel.output_shape, dtype)
        self.steps.append(Call(kernel, operands, result))
        return result

    def packed_by(self, kernel: Kernel, channels: Channels, *operands: Buffer | Promise) -> Packed:
        """The feature map [N, C, H, W] of a kernel that writes channel blocks."""
        batch, blocks, height, width, lanes = kernel.output_shape
        return Packed(self.call(kernel, *operands), channels, batch, blocks, height, width, lanes)

    def reshape(self, buffer: Buffer, shape: tuple[int, ...]) -> Buffer:
        """The same memory under another shape."""
        if buffer.shape == shape:
            return buffer
        result = Buffer(shape, buffer.dtype)
        self.steps.append(Reshape(buffer, result))
        return result

    def packed(self, value: Value) -> Packed | None:
        """The value in channel blocks, packed where it is a feature map [N, C, ...]; None where it is neither."""
        if isinstance(value, Packed):
            return value
        if isinstance(value, Cropped):
            return self.moved(value)
        if isinstance(value, Matrix):
            lanes = self.cpu.lanes
            if value.size % lanes or value.channels.positions.ndim != 1:
                return None
            blocks = value.size // lanes
            buffer = self.reshape(value.buffer, (value.batch, blocks, 1, 1, lanes))
            return Packed(buffer, value.channels, value.batch, blocks, 1, 1, lanes, (("n",), ("c",)), value.grid)
        if not isinstance(value, Plain) or len(value.shape) not in (3, 4) or value.buffer.dtype != "float32":
            return None
        known = self._packed.get(id(value.buffer))
        if known is None:
            shape = value.shape if len(value.shape) == 4 else (*value.shape[:2], 1, value.shape[2])
            kernel = Pack(shape, self.cpu.lanes)
            known = self.packed_by(kernel, Channels.in_order(shape[1]), self.reshape(value.buffer, shape))
            if len(value.shape) == 3:
                known = known.with_dims((("n",), ("c",), ("w",)))
            self._packed[id(value.buffer)] = known
        return known

    def feature_map(self, value: Value) -> Packed | None:
        """The value packed, its view [N, C, H, W]; None where it is no such map."""
        packed = self.packed(value)
        if packed is None or len(packed.dims) != 4 or packed.channel_dimension() != 1:
            return None
        if any(packed.over(place) not in ((), MAP[place]) for place in (0, 2, 3)):
            return None
        return packed.with_dims(MAP, packed.channels.flat)

    def in_order(self, value: Packed) -> Packed:
        """The value with its channels in order, gathered if need be."""
        return value if value.in_order else self.gathered(value)

    def stored(self, value: Packed) -> Packed:
        """The value with a place for every channel."""
        return value if value.channels.stored else self.gathered(value)

    def moved(self, value: Cropped) -> Packed:
        """The rows and columns of a crop in a buffer of their own."""
        return self.gathered(value.value, value.size, value.offset, value.stride)

    def gathered(
        self,
        value: Packed,
        size: tuple[int, int] | None = None,
        offset: tuple[int, int] = (0, 0),
        stride: tuple[int, int] = (1, 1),
        fill: float = 0.0,
    ) -> Packed:
        """The channels in order, in fresh blocks; of the rows and columns only those asked for (see `Gather`)."""
        positions = value.channels.positions.reshape(-1)
        blocks = block_count(len(positions), value.lanes)

        def table(_: Tensors) -> Array:
            filled = np.full(blocks * value.lanes, ZERO, dtype=np.int32)
            filled[: len(positions)] = positions
            return filled.reshape(blocks, value.lanes)

        rows, columns = size or (value.height, value.width)
        kernel = Gather(value.buffer_shape, blocks, (rows, columns), offset, stride, fill, value.buffer.dtype)
        zero = [] if value.grid is None else [self.grid(value.grid).zero]
        order = Channels.of(np.arange(len(positions)).reshape(value.channels.shape))
        return replace(
            value,
            buffer=self.call(kernel, value.buffer, table, *zero),
            channels=order,
            blocks=blocks,
            height=rows,
            width=columns,
        )

    def grid(self, layer: str) -> Grid:
        """The grid of codes that a layer reads."""
        return Grid(layer, self.storage.shifts.get(layer, 0), layer in self.storage.unsigned)

    def quantised(self, value: Value, layer: str) -> Packed | Matrix | None:
        """The value as codes that the layer reads: those that it is stored in already, or fresh ones in its own grid;
        None where it lies neither in channel blocks nor in a matrix."""
        if isinstance(value, Plain) and len(value.shape) == 2:
            value = Matrix(value.buffer, Channels.in_order(value.shape[1]), *value.shape)
        if isinstance(value, Packed):
            return self.quantised_map(value, layer)
        if not isinstance(value, Matrix) or value.grid is not None:
            return value if isinstance(value, Matrix) else None
        buffer = self.call(Quantise(value.buffer.shape), value.buffer, self.grid(layer).quantising)
        return replace(value, buffer=buffer, grid=layer)

    def quantised_map(self, value: Packed, layer: str, border: Border = NO_BORDER) -> Packed:
        """The same of channel blocks; fresh ones may get a border of zeros."""
        if value.grid is not None:
            return value
        kernel = Quantise(value.buffer.shape, border)
        buffer = self.call(kernel, value.buffer, self.grid(layer).quantising)
        return replace(value, buffer=buffer, height=buffer.shape[2], width=buffer.shape[3], grid=layer)

    def framed(self, value: Packed, layer: str, border: Border) -> Packed:
        """The map, of codes that the layer reads, with a border of zeros."""
        buffer = self.call(Framed(value.buffer_shape, border), value.buffer, self.grid(layer).zero)
        return replace(value, buffer=buffer, height=buffer.shape[2], width=buffer.shape[3])

    def dequantised(self, value: Value) -> Value:
        """The value in float32."""
        if isinstance(value, Cropped):
            return replace(value, value=self._numbers(value.value))
        if isinstance(value, Packed):
            return self._numbers(value)
        return self._numbers(value) if isinstance(value, Matrix) else value

    def _numbers(self, value: _Coded) -> _Coded:
        if value.grid is None:
            return value
        buffer = self.call(Dequantise(value.buffer.shape), value.buffer, self.grid(value.grid).dequantising)
        return replace(value, buffer=buffer, grid=None)

    def plain(self, value: Value) -> Plain:
        """The value as torch stores it, in float32."""
        value = self.dequantised(value)
        if isinstance(value, Plain):
            return value
        if isinstance(value, tuple | Constant):
            raise TypeError("several values, or one that is not computed, have no buffer of their own")
        if isinstance(value, Matrix):
            if value.in_order:
                return Plain(self.reshape(value.buffer, value.shape), value.shape)
            features = GatherFeatures((value.batch, value.size), value.channels.count)
            buffer = self.call(features, value.buffer, positions_of(value.channels))
            return Plain(self.reshape(buffer, value.shape), value.shape)
        value = self.stored(self.moved(value) if isinstance(value, Cropped) else value)
        sizes = value.sizes()
        names = tuple(axis for dim in sizes for axis, size in dim if size > 1 and axis != "n")
        table = positions_of(value.channels)
        if names == tuple(axis for axis in ("c",) * names.count("c") + ("h", "w") if axis in names) and (
            value.batch == 1 or value.dims[0] == ("n",)
        ):
            buffer = self.call(Unpack(value.buffer_shape, value.channels.count), value.buffer, table)
        else:
            kernel = Rearrange(value.buffer_shape, tuple(tuple(dim) for dim in sizes))
            buffer = self.call(kernel, value.buffer, table)
        return Plain(self.reshape(buffer, value.shape), value.shape)


def positions_of(channels: Channels) -> Promise:
    """A table of positions, as kernels read it."""
    return lambda _: channels.positions.reshape(-1).astype(np.int32)


def plan(
    graph: ModelGraph,
    cpu: Cpu,
    rules: Mapping[str, Rule],
    rest: Callable[[Planner, FusedOperator], Value],
    batch: int = 1,
    formats: Formats | None = None,
) -> tuple[Planner, Buffer, Buffer]:
    """The whole network as its graph stands: the walk, the buffer of the input and that of the output."""
    structure = Structure.of(graph)
    planner = Planner(structure, cpu, rules, rest, graph.kept, batch, structure.storage.storage(formats or {}))
    given = planner.begin()
    for fused in planner.structure.fused:
        planner.lower(fused)
    return planner, given.buffer, planner.finish()
