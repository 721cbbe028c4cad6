"""Four products of bytes a lane, added to int32: the one place that knows a processor's instructions for it.

    sums[v] += sum over q < 4 of inputs[4*v + q] * weights[4*v + q]

Every way is exact for every byte. (AVX2's vpmaddubsw is not among them: it saturates pairs at 32767, and 255 * 127 * 2
is twice that.)
"""

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

from tvm import tirx

from backends.tvm.kernels.base import Expression
from backends.tvm.kernels.loops import store

MOST_PRODUCTS = (2**31 - 1) // (255 * 128)
"""As many fit in an int32 sum, whatever they are."""

_MULTIPLY_ADD = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}
"""Pairs of int16 products, added, by lanes."""


def same_for_all(inputs: Expression, lanes: int) -> Expression:
    """The same four bytes (uint8x4) for each lane (uint8x4*lanes)."""
    word = tirx.reinterpret("int32", inputs)
    return tirx.reinterpret(f"uint8x{4 * lanes}", tirx.Broadcast(word, lanes))


def add_products(sums: Any, at: Sequence[Expression], inputs: Expression, weights: Expression, dot: str) -> None:
    """Adds to the int32 register `sums[at]` [lanes] the products of inputs (uint8x4*lanes) and weights (int8x4*lanes).

    Args:
        dot: how, see `Cpu`.
    """
    lanes = int(sums.shape[-1])
    register = sums.vload([*at, 0], f"int32x{lanes}")
    store(sums, (*at, tirx.Ramp(0, 1, lanes)), _WAYS[dot](register, inputs, weights, lanes))


def _dot_product(sums: Expression, inputs: Expression, weights: Expression, lanes: int) -> Expression:
    """VNNI: one instruction, exact (its namesake vpdpbusds saturates)."""
    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
    return tirx.call_llvm_pure_intrin(f"int32x{lanes}", name, sums, inputs, weights)


def _by_pairs(sums: Expression, inputs: Expression, weights: Expression, lanes: int) -> Expression:
    """The even bytes and the odd ones as int16, each multiplied and added in pairs."""
    eight = tirx.Broadcast(tirx.const(8, "int16"), 2 * lanes)
    unsigned = tirx.reinterpret(f"uint16x{2 * lanes}", inputs)
    signed = tirx.reinterpret(f"int16x{2 * lanes}", weights)
    low = tirx.Broadcast(tirx.const(255, "uint16"), 2 * lanes)
    even = unsigned & low, (signed << eight) >> eight
    odd = unsigned >> tirx.Broadcast(tirx.const(8, "uint16"), 2 * lanes), signed >> eight
    for pair in (even, odd):
        sums = sums + tirx.call_llvm_pure_intrin(f"int32x{lanes}", _MULTIPLY_ADD[lanes], *pair)
    return sums


def _one_by_one(sums: Expression, inputs: Expression, weights: Expression, lanes: int) -> Expression:
    """Each byte as int32."""

    def number(value: int) -> Expression:
        return tirx.Broadcast(tirx.const(value, "int32"), lanes)

    unsigned, signed = (tirx.reinterpret(f"int32x{lanes}", side) for side in (inputs, weights))
    products = (
        ((unsigned >> number(8 * q)) & number(255)) * ((signed << number(24 - 8 * q)) >> number(24)) for q in range(4)
    )
    return reduce(add, products, sums)


_WAYS = {"vnni512": _dot_product, "vnni256": _dot_product, "madd": _by_pairs, "plain": _one_by_one}
