"""Operators that TVM's own code computes, because no rule of Trimtab's covers them."""

import operator
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode
from tvm import relax
from tvm.tirx import PrimFunc

from backends.tvm.target import Cpu
from backends.tvm.tuning import TRIALS, TUNING_TIMEOUT_S, imported_program, tuned_functions, untuned_functions
from search_spaces.errors import TrimtabError
from search_spaces.operators import Argument, TensorInput

Array = npt.NDArray[Any]
TensorType = tuple[tuple[int, ...], str]
"""Shape and type, such as ((1, 16), "float32")."""

_MISCOMPILED = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
"""Recurrent layers: this release of TVM imports and runs them, and gives garbage."""


@dataclass(frozen=True)
class StockOperator:
    """One call of an operator of torch's, on tensors as torch lays them out: compiled by TVM, tuned by MetaSchedule.

    Like a kernel, it is a recipe of the latency table and knows its operands and torch's answer.

    Attributes:
        target: the operator with its overload, such as "aten.cumsum.default".
        arguments: by name; the i-th input stands as `TensorInput(i)`, types and the like as str() gives them.
        inputs: shape and type of each input, batch included.
        output: shape and type of what it gives.
        item: which of its outputs that is, where it has several.
    """

    target: str
    arguments: tuple[tuple[str, Argument], ...]
    inputs: tuple[TensorType, ...]
    output: TensorType
    item: int | None = None

    kind: ClassVar[str] = "stock"
    tuning_s: ClassVar[float] = 2 * TUNING_TIMEOUT_S
    """How much longer than other recipes it may take to be made ready: MetaSchedule tunes it first."""

    @property
    def recipe(self) -> str:
        """Text that tells this operator from every other, the same in each process."""
        call = ",".join(f"{name}={_text(value)}" for name, value in self.arguments)
        inputs = ",".join(f"x{index}:{_type_text(given)}" for index, given in enumerate(self.inputs))
        item = "" if self.item is None else f"[{self.item}]"
        return f"{self.kind}({self.target}({call}){item},{inputs}->{_type_text(self.output)})"

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output."""
        return self.output[0]

    @cached_property
    def work(self) -> float:
        """Multiply-adds, or elements computed where torch counts none."""
        shapes = [torch.empty(shape, dtype=_dtype(name), device="meta") for shape, name in self.inputs]
        # an operator whose result depends on values cannot be run on shapes
        with FlopCounterMode(display=False) as counter, suppress(NotImplementedError, RuntimeError):
            self._call(shapes)
        return counter.get_total_flops() / 2 or float(prod(self.output_shape))

    @property
    def traffic(self) -> float:
        """Bytes of all inputs and of the output."""
        return float(sum(prod(shape) * _dtype(name).itemsize for shape, name in (*self.inputs, self.output)))

    def operand_types(self, cpu: Cpu) -> list[TensorType]:
        """Shape and type of each operand, in calling order."""
        return list(self.inputs)

    def example_operands(self, cpu: Cpu, generator: np.random.Generator) -> list[Array]:
        """Random operands for which torch gives numbers: of both signs, or positive where it must be. Whole numbers
        are positions that every axis of every input has."""
        positions = min((extent for shape, _ in self.inputs for extent in shape), default=1)

        def draw(given: TensorType, positive: bool) -> Array:
            shape, name = given
            dtype = np.dtype(name)
            if dtype.kind == "b":
                return np.asarray(generator.random(shape) < 0.5)
            if dtype.kind in "iu":
                return generator.integers(0, max(1, min(positions, 2)), shape).astype(dtype)
            values = generator.uniform(0.1, 0.9, shape) if positive else generator.standard_normal(shape)
            return np.asarray(values).astype(dtype)

        operands = [draw(given, positive=False) for given in self.inputs]
        if not np.isfinite(self.reference(operands)).all():
            operands = [draw(given, positive=True) for given in self.inputs]
        return operands

    def reference(self, operands: Sequence[Array]) -> Array:
        """What torch computes."""
        result: Array = self._call([torch.from_numpy(operand) for operand in operands]).numpy()
        return result

    def imported(self, *, whole: bool = False) -> Any:
        """The operator as TVM's own importer reads it: a Relax program of the inputs, nothing scheduled.

        Args:
            whole: read it as one operator of TVM's; by default torch takes it apart first.

        Raises:
            TrimtabError: TVM cannot import it, or is known to miscompile it.
        """
        if _MISCOMPILED.intersection(self.target.split(".")):
            raise TrimtabError(
                f"TVM miscompiles recurrent layers, and {self.target} is one; use the backend onnxruntime or torch"
            )
        graph = fx.Graph()
        operands = [graph.placeholder(f"x{index}") for index in range(len(self.inputs))]
        result = graph.call_function(self._overload, kwargs=self._keywords(operands))
        if self.item is not None:
            result = graph.call_function(operator.getitem, (result, self.item))
        graph.output(result)
        zeros = tuple(torch.zeros(shape, dtype=_dtype(name)) for shape, name in self.inputs)
        module = imported_program(fx.GraphModule(nn.Module(), graph), zeros, self.target, whole=whole)
        given = module["main"].ret_ty
        if (tuple(int(extent) for extent in given.shape), str(given.dtype)) != self.output:
            raise TrimtabError(
                f"TVM gives {self.target} the type {given}, torch {_type_text(self.output)}; replace it in the network "
                "or use another backend"
            )
        return module

    def build_module(self, cpu: Cpu, *, trials: int = TRIALS) -> Any:
        """The operator in tuned code, tuned now where it is met first; untuned for what this machine cannot run.

        Returns:
            An IRModule whose Relax function "main" does nothing but call functions with loops; `inline_into` takes it.

        Raises:
            TrimtabError: see `imported` and `backends.tvm.tuning.tuned_functions`.
        """
        try:
            return self._tuned(cpu, trials, whole=True)
        except TrimtabError:
            return self._tuned(cpu, trials, whole=False)

    def _tuned(self, cpu: Cpu, trials: int, *, whole: bool) -> Any:
        module = self.imported(whole=whole)
        if not cpu.runs_here:
            return untuned_functions(module, cpu, name=self.target)
        return tuned_functions(module, cpu, name=self.target, example=lambda: self._example(cpu), trials=trials).module

    def _example(self, cpu: Cpu) -> tuple[list[Array], Array]:
        operands = self.example_operands(cpu, np.random.default_rng(0))
        return operands, self.reference(operands)

    @property
    def _overload(self) -> Any:
        try:
            namespace, name, overload = self.target.split(".")
            return getattr(getattr(getattr(torch.ops, namespace), name), overload)
        except (AttributeError, ValueError):
            raise TrimtabError(f"torch has no operator {self.target!r}, such as 'aten.cumsum.default'") from None

    def _keywords(self, operands: Sequence[Any]) -> dict[str, Any]:
        """The arguments with the operands in their places."""

        def value_of(value: Argument) -> Any:
            if isinstance(value, TensorInput):
                return operands[value.index]
            if isinstance(value, tuple):
                return [value_of(item) for item in value]
            if isinstance(value, str) and value.startswith("torch."):
                return getattr(torch, value.removeprefix("torch."))
            return value

        return {name: value_of(value) for name, value in self.arguments}

    def _call(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            result = self._overload(**self._keywords(tensors))
        return result if self.item is None else result[self.item]


def inline_into(builder: relax.BlockBuilder, module: Any, arguments: Sequence[Any]) -> Any:
    """Emits what a module's "main" does into the builder's current block.

    Args:
        builder: within a function.
        module: of `StockOperator.build_module`; its functions are added to the builder's module.
        arguments: a Relax variable for each parameter of "main".

    Returns:
        The variable that holds the output.
    """
    main = module["main"]
    known = dict(zip(main.params, arguments, strict=True))
    known |= {
        variable: builder.add_func(function, variable.name_hint)
        for variable, function in module.functions.items()
        if isinstance(function, PrimFunc)
    }
    for block in main.body.blocks:
        for binding in block.bindings:
            known[binding.var] = builder.emit(_substitute(binding.value, known))
    return known[main.body.body]


def _substitute(expression: Any, known: Mapping[Any, Any]) -> Any:
    """A binding's value with the variables that stand for its own; in normal form its parts are variables and leaves,
    alone or in tuples."""
    if isinstance(expression, relax.Call):
        arguments = [_substitute(argument, known) for argument in expression.args]
        return relax.Call(_substitute(expression.op, known), arguments, expression.attrs, expression.ty_args)
    if isinstance(expression, relax.Tuple):
        return relax.Tuple([_substitute(field, known) for field in expression.fields])
    if isinstance(expression, relax.TupleGetItem):
        return relax.TupleGetItem(_substitute(expression.tuple_value, known), expression.index)
    return known.get(expression, expression)


def _text(value: Argument) -> str:
    if isinstance(value, TensorInput):
        return f"x{value.index}"
    if isinstance(value, tuple):
        return f"({','.join(map(_text, value))})"
    return repr(value)


def _type_text(given: TensorType) -> str:
    return f"{given[1]}{list(given[0])}".replace(" ", "")


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype
