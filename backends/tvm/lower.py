"""From an exported network in Relax to one whose operators are our kernels.

The walk goes over the bindings in order. Each is offered to the rule of its operator; a rule calls kernels and gives
the value in whatever layout suits it, so feature maps stay in channel blocks from the first convolution to the last.
What no rule takes is emitted as it stands, on plain layouts, and counted as a fallback by its name.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from backends.tvm.constants import fold, per_channel
from backends.tvm.epilogue import FusedTail
from backends.tvm.kernel import Kernel
from backends.tvm.layout import (
    ZERO,
    Blocked,
    Features,
    IntArray,
    Plain,
    Value,
    block_count,
    flattened,
)
from backends.tvm.movement import Gather, GatherFeatures, Pack, Unpack
from backends.tvm.reading import activation_of, operator_name, shape_of, users_of, variables_in
from backends.tvm.target import Cpu

Rule = Callable[["Lowering", Any], Value | None]
"""Lowers the call bound by a binding, or gives None where it cannot; then nothing must have been emitted."""


class Lowering:
    """One walk over a network.

    Attributes:
        operators: calls of each kernel, by kind.
        fallbacks: calls left to stock TVM, by operator name.
    """

    def __init__(self, module: Any, cpu: Cpu, rules: Mapping[str, Rule]) -> None:
        self.cpu = cpu
        self.operators: Counter[str] = Counter()
        self.fallbacks: Counter[str] = Counter()
        self._function = module["main"]
        self._rules = rules
        self._builder = relax.BlockBuilder()
        self._kernels: dict[Kernel, Any] = {}
        self._bindings = [binding for block in self._function.body.blocks for binding in block.bindings]
        self._values: dict[Any, Value] = {}
        self._packed: dict[Any, Blocked] = {}
        self._constants: dict[Any, npt.NDArray[Any]] = {}
        self._users = users_of(self._bindings, self._function.body.body)
        self._fused: dict[Any, Any] = {}
        self._position = {binding.var: position for position, binding in enumerate(self._bindings)}
        self._pending: set[Any] = set()

    def run(self) -> Any:
        """The lowered module, its only entry `main`."""
        parameters = [relax.Var(parameter.name, parameter.ty) for parameter in self._function.params]
        for original, parameter in zip(self._function.params, parameters, strict=True):
            self._values[original] = Plain(parameter, shape_of(original))
        for binding in self._bindings:  # all constants first: they may come after the operator that they fuse with
            constant = fold(binding.value, self.constant)
            if constant is not None:
                self._constants[binding.var] = constant
        with self._builder.function("main", parameters):
            with self._builder.dataflow():
                for binding in self._bindings:
                    self._ensure(binding.var)
                output = self._builder.emit_output(self._plain_tree(self._function.body.body))
            self._builder.emit_func_output(output)
        return self._builder.get()

    def _ensure(self, variable: Any) -> None:
        """Lowers the variable's binding and all that it needs, in their order; nothing where a part is under way."""
        needed, stack = set(), [variable]
        while stack:
            part = stack.pop()
            if part in self._values or part in self._constants or part in needed or part not in self._position:
                continue
            if part in self._pending:
                return
            needed.add(part)
            stack += variables_in(self._bindings[self._position[part]].value)
        for part in sorted(needed, key=self._position.__getitem__):
            if part in self._values:
                continue  # an operator before it asked for it in the meantime
            self._pending.add(part)
            head = self._fused.get(part)
            self._values[part] = (
                self._lower(self._bindings[self._position[part]]) if head is None else self._values[head]
            )
            self._pending.discard(part)

    def _lower(self, binding: Any) -> Value:
        expr = binding.value
        if isinstance(expr, relax.Var):
            return self._values[expr]
        if isinstance(expr, relax.Tuple):
            return tuple(self.value(field) for field in expr.fields)
        if isinstance(expr, relax.TupleGetItem):
            return self._field(self.value(expr.tuple_value), expr)
        name = operator_name(expr)
        value = self._rules[name](self, binding) if name in self._rules else None
        if value is not None:
            return value
        self.fallbacks[name.removeprefix("relax.")] += 1
        arguments = [self._plain_tree(argument) for argument in expr.args]
        return self._fallback(relax.Call(expr.op, arguments, expr.attrs, expr.ty_args), expr)

    def _field(self, whole: Value, expr: Any) -> Value:
        if isinstance(whole, tuple):
            return whole[expr.index]
        if isinstance(whole, Plain) and isinstance(whole.expr.ty, relax.TupleType):
            return self._fallback(relax.TupleGetItem(whole.expr, expr.index), expr)
        return whole  # of a batch norm: its statistics are never asked for in evaluation

    def _fallback(self, call: Any, original: Any) -> Value:
        emitted = self._builder.emit(call)
        return Plain(emitted, () if isinstance(original.ty, relax.TupleType) else shape_of(original))

    # What rules use ------------------------------------------------------------------------------------------------

    def call(self, kernel: Kernel, *operands: Any) -> Any:
        """Calls a kernel, which is built at its first use; numpy arrays become constants."""
        if kernel not in self._kernels:
            name = f"{kernel.kind}_{len(self._kernels)}"
            self._kernels[kernel] = self._builder.add_func(kernel.build(self.cpu), name)
        self.operators[kernel.kind] += 1
        arguments = [_constant(operand) if isinstance(operand, np.ndarray) else operand for operand in operands]
        output = relax.TensorType(kernel.output_shape, "float32")
        return self._builder.emit(relax.call_tir(self._kernels[kernel], arguments, output))

    def blocks_of(self, kernel: Kernel, channels: IntArray, *operands: Any) -> Blocked:
        """The value of a kernel that writes channel blocks."""
        return Blocked(self.call(kernel, *operands), channels, *kernel.output_shape)

    def reshape(self, expr: Any, shape: Sequence[int]) -> Any:
        """The same memory under another shape."""
        return self._builder.emit(relax.op.reshape(expr, tuple(shape)))

    def constant(self, expr: Any) -> npt.NDArray[Any] | None:
        """The array that an expression always is, or None."""
        if isinstance(expr, tvm.ir.expr.GenericConst):
            array: npt.NDArray[Any] = expr.value.numpy()
            return array
        return self._constants.get(expr) if isinstance(expr, relax.Var) else None

    def value(self, expr: Any) -> Value:
        """The lowered value of an expression."""
        if isinstance(expr, relax.Tuple):
            return tuple(self.value(field) for field in expr.fields)
        constant = self.constant(expr)
        if constant is not None:
            return Plain(_constant(constant), constant.shape)
        return self._values[expr]

    def blocked(self, value: Value) -> Blocked | None:
        """The value in channel blocks, packed if need be; None where it is no float feature map."""
        if isinstance(value, Blocked):
            return value
        if not isinstance(value, Plain) or len(value.shape) != 4 or value.expr.ty.dtype != "float32":
            return None
        if value.expr not in self._packed:
            kernel = Pack(value.shape, self.cpu.lanes)
            self._packed[value.expr] = self.blocks_of(kernel, np.arange(value.shape[1], dtype=np.int64), value.expr)
        return self._packed[value.expr]

    def in_order(self, value: Blocked) -> Blocked:
        """The value with its channels, all of them stored, in the network's order."""
        return value if value.in_order else self.gathered(value)

    def stored(self, value: Blocked) -> Blocked:
        """The value with a place for every channel."""
        return value if value.stored else self.gathered(value)

    def gathered(
        self,
        value: Blocked,
        size: tuple[int, int] | None = None,
        offset: tuple[int, int] = (0, 0),
        stride: tuple[int, int] = (1, 1),
        fill: float = 0.0,
    ) -> Blocked:
        """The channels in order, in fresh blocks; of the rows and columns only those asked for (see `Gather`)."""
        channels = value.channels.reshape(-1)
        blocks = block_count(channels.size, value.lanes)
        table = np.full(blocks * value.lanes, ZERO, dtype=np.int32)
        table[: channels.size] = channels
        kernel = Gather(value.buffer_shape, blocks, size or (value.height, value.width), offset, stride, fill)
        order = np.arange(channels.size, dtype=np.int64).reshape(value.channels.shape)
        return self.blocks_of(kernel, order, value.expr, table.reshape(blocks, value.lanes))

    def features(self, value: Value) -> Features | None:
        """The value as a matrix of features; None where it is none."""
        if isinstance(value, Features):
            return value
        if not isinstance(value, Plain) or len(value.shape) != 2 or value.expr.ty.dtype != "float32":
            return None
        batch, size = value.shape
        return Features(value.expr, np.arange(size, dtype=np.int64), batch, size)

    def flatten(self, value: Blocked) -> Features:
        """[N, C, H, W] as a matrix of features, without moving anything."""
        value = self.stored(value)
        size = value.blocks * value.height * value.width * value.lanes
        return Features(self.reshape(value.expr, (value.batch, size)), flattened(value), value.batch, size)

    def plain(self, value: Value) -> Any:
        """The value's expression as torch stores it."""
        if isinstance(value, tuple):
            return relax.Tuple([self.plain(field) for field in value])
        if isinstance(value, Plain):
            return value.expr
        if isinstance(value, Features):
            if value.in_order:
                return value.expr
            table = value.channels.astype(np.int32)
            return self.call(GatherFeatures((value.batch, value.size), table.size), value.expr, table)
        stored = self.stored(value)
        table = stored.channels.reshape(-1).astype(np.int32)
        unpacked = self.call(Unpack(stored.buffer_shape, table.size), stored.expr, table)
        return unpacked if stored.channels.ndim == 1 else self.reshape(unpacked, stored.shape)

    def fuse_tail(self, binding: Any, channels: int, *, residual: bool = True, affine: bool = True) -> FusedTail:
        """What follows the binding, is used by nothing else and can be computed with it: batch norm and other affine
        maps of channels, then one sum with a feature map that is already there, then clamps (ReLU, ReLU6). The
        variables of what is fused get the value of the binding.

        Args:
            binding: the operator's; nothing of it may have failed to lower after this.
            channels: of its output.
            residual: whether the operator can add a feature map; it must then write its channels in order.
            affine: whether it can fold an affine map into its weights.
        """
        tail = FusedTail.of(channels)
        self._follow(binding, lambda source, following: self._absorb(tail, source, following, residual, affine))
        return tail

    def fuse_while(self, binding: Any, take_in: Callable[[Any], bool]) -> None:
        """Offers the calls that follow the binding, each the only user of the one before, until one is not taken in;
        the variables of the others get the value of the binding."""
        self._follow(binding, lambda _, following: take_in(following.value))

    def _follow(self, binding: Any, take_in: Callable[[Any, Any], bool]) -> None:
        current = binding
        while (following := self._only_user(current.var)) is not None and take_in(current.var, following):
            self._fused[following.var] = binding.var
            current = following

    def _absorb(self, tail: FusedTail, source: Any, binding: Any, residual: bool, affine: bool) -> bool:
        """Whether the tail could be extended by the operator of the binding."""
        if isinstance(binding.value, relax.TupleGetItem):
            return binding.value.index == 0  # of a batch norm, which gives its statistics too
        if (activation := activation_of(binding.value)) is not None:
            tail.activation = tail.activation.then(activation)
            return True
        folded = self.affine_of(source, binding.value, len(tail.scale)) if affine and tail.linear else None
        if folded is not None:
            scale, shift = folded
            tail.scale, tail.shift = tail.scale * scale, tail.shift * scale + shift
            return True
        if residual and tail.linear and operator_name(binding.value) == "relax.add":
            left, right = binding.value.args
            other = right if left.same_as(source) else left
            self._ensure(other)  # it cannot depend on the sum's other side, which nothing else uses
            value = self._values.get(other)
            if isinstance(value, Blocked) and not other.same_as(source) and shape_of(other) == shape_of(source):
                tail.residual = other
                return True
        return False

    def residual(self, tail: FusedTail) -> list[Any]:
        """The operands that the tail's residual is: one with channels in order, or none."""
        if tail.residual is None:
            return []
        value = self._values[tail.residual]
        if not isinstance(value, Blocked):
            raise TypeError("a residual is in channel blocks")
        return [self.in_order(value).expr]

    def affine_of(
        self, source: Any, expr: Any, channels: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
        """(scale, shift) [channels] where the expression is source * scale + shift with constants, or None."""
        name = operator_name(expr)
        if name == "relax.nn.batch_norm" and int(expr.attrs.axis) == 1:
            constants = [self.constant(argument) for argument in expr.args[1:]]
            if any(constant is None for constant in constants):
                return None
            gamma, beta, mean, variance = (np.asarray(constant, dtype=np.float64) for constant in constants)
            scale = (gamma if expr.attrs.scale else 1.0) / np.sqrt(variance + float(expr.attrs.epsilon))
            return scale, (beta if expr.attrs.center else 0.0) - mean * scale
        if name not in ("relax.add", "relax.subtract", "relax.multiply", "relax.divide"):
            return None
        left, right = expr.args
        on_left = left.same_as(source)
        constant = self.constant(right if on_left else left)
        vector = None if constant is None else per_channel(constant, len(shape_of(expr)), channels)
        if vector is None or shape_of(expr) != shape_of(source):
            return None
        one, zero = np.ones(channels), np.zeros(channels)
        if name == "relax.add":
            return one, vector
        if name == "relax.multiply":
            return vector, zero
        if name == "relax.subtract":
            return (one, -vector) if on_left else (-one, vector)
        return (1.0 / vector, zero) if on_left else None

    def _only_user(self, variable: Any) -> Any | None:
        users = self._users.get(variable, [])
        return users[0] if len(users) == 1 else None

    def _plain_tree(self, expr: Any) -> Any:
        """The expression with every tensor in it lowered to torch's layout."""
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self._plain_tree(field) for field in expr.fields])
        return self.plain(self.value(expr)) if isinstance(expr, relax.Var) else expr


def _constant(array: npt.NDArray[Any]) -> Any:
    return relax.const(np.ascontiguousarray(array), str(array.dtype))
