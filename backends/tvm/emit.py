"""From planned steps and the network's constants to a module of TVM's Relax."""

from collections.abc import Mapping, Sequence

import numpy as np
import tvm
from tvm import relax

from backends.tvm.kernels.base import Kernel
from backends.tvm.lowering.plan import Array, Call, Planner, Tensors
from backends.tvm.lowering.values import Buffer
from backends.tvm.stock import StockOperator, inline_into
from backends.tvm.target import Cpu


def emit(
    planner: Planner, given: Buffer, output: Buffer, tensors: Tensors, cpu: Cpu, beside: Sequence[Buffer] = ()
) -> tuple[tvm.IRModule, Mapping[Kernel, str]]:
    """The module, its only entry `main`, and the function of each kernel in it.

    Args:
        planner: that has walked over the network.
        given, output: the buffers of its input and output.
        tensors: its constants.
        cpu: the processor that code is for.
        beside: buffers that `main` gives behind the output; without them it gives the output alone.
    """
    builder = relax.BlockBuilder()
    parameter = relax.Var("x", relax.TensorType(given.shape, "float32"))
    values = {given: parameter}
    functions: dict[Kernel, relax.GlobalVar] = {}
    stock: dict[StockOperator, tvm.IRModule] = {}
    with builder.function("main", [parameter]):
        with builder.dataflow():
            for step in planner.steps:
                if not isinstance(step, Call):
                    values[step.result] = builder.emit(relax.op.reshape(values[step.source], step.result.shape))
                    continue
                kernel = step.kernel
                if isinstance(kernel, StockOperator):
                    operands = [
                        values[operand] if isinstance(operand, Buffer) else _exact(operand(tensors))
                        for operand in step.operands
                    ]
                    if kernel not in stock:
                        stock[kernel] = kernel.build_module(cpu)
                    values[step.result] = inline_into(builder, stock[kernel], operands)
                    continue
                if kernel not in functions:
                    functions[kernel] = builder.add_func(kernel.build(cpu), f"{kernel.kind}_{len(functions)}")
                operands = [
                    values[operand] if isinstance(operand, Buffer) else _constant(operand(tensors))
                    for operand in step.operands
                ]
                kind = relax.TensorType(kernel.output_shape, kernel.output_dtype)
                values[step.result] = builder.emit(relax.call_tir(functions[kernel], operands, kind))
            results = [values[buffer] for buffer in (output, *beside)]
            result = builder.emit_output(relax.Tuple(results) if beside else results[0])
        builder.emit_func_output(result)
    return builder.get(), {kernel: str(function.name_hint) for kernel, function in functions.items()}


def _constant(array: Array) -> relax.Expr:
    whole = str(array.dtype) if array.dtype.itemsize == 1 else "int32"
    kind = whole if array.dtype.kind in "iu" else "float32"
    return relax.const(np.ascontiguousarray(array, dtype=kind), kind)


def _exact(array: Array) -> relax.Expr:
    return relax.const(np.ascontiguousarray(array), str(array.dtype))
