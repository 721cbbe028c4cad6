"""Four products of bytes a lane, added to int32: the one place that knows a processor's instructions for it.

    sums[v] += sum over q < 4 of inputs[4*v + q] * weights[4*v + q]

Every way is exact for every byte. (AVX2's vpmaddubsw is not among them: it saturates pairs at 32767, and 255 * 127 * 2
is twice that.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any

from tvm import tirx

from backends.tvm.kernels.base import Expression
from backends.tvm.kernels.loops import accumulators, store
from backends.tvm.target import Cpu

MOST_PRODUCTS = (2**31 - 1) // (255 * 128)
"""As many fit in an int32 sum, whatever they are."""

_MULTIPLY_ADD = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}
"""Pairs of int16 products, added, by lanes."""


def with_free_registers(cpu: Cpu) -> Cpu:
    """The processor with no more registers than its way of adding up leaves to a tile."""
    return replace(cpu, registers=cpu.registers - _WAYS[cpu.dot].registers)


def registers_of_a_sum(cpu: Cpu) -> int:
    """Registers for a pixel's sum of one block: two where something has to be subtracted from it."""
    return 2 if _WAYS[cpu.dot].offset else 1


class Sums:
    """A tile of int32 registers [blocks, *pixels, lanes] that sum products of bytes.

    Weights are int8x4*lanes, and so many uint8 the inputs, or four if they are shared.

    Args:
        dot: how, see `Cpu`.
        blocks: channel blocks.
        pixels: extents of what the same weights are for.
        lanes: of a register.
        shared: whether the inputs are the same for all lanes.
    """

    def __init__(self, dot: str, blocks: int, pixels: Sequence[int], lanes: int, *, shared: bool = False) -> None:
        self._way, self._lanes, self._shared = _WAYS[dot], lanes, shared
        self._sums = accumulators(blocks, *pixels, lanes, dtype="int32")
        self._offsets = accumulators(*pixels, lanes, dtype="int32") if self._way.offset else None

    def add_inputs(self, pixel: Sequence[Expression], inputs: Expression) -> None:
        """Takes note of a pixel's inputs, once for all blocks."""
        if self._offsets is not None:
            self._add(self._offsets, pixel, inputs, tirx.Broadcast(tirx.const(0, "int8"), 4 * self._lanes))

    def add_products(
        self, block: Expression, pixel: Sequence[Expression], inputs: Expression, weights: Expression
    ) -> None:
        """Adds the products of a pixel's inputs and a block's weights."""
        self._add(self._sums, (block, *pixel), inputs, weights)

    def total(self, block: Expression, pixel: Sequence[Expression], lane: Expression) -> Expression:
        """One sum, when all has been added."""
        total = self._sums[(block, *pixel, lane)]
        if self._offsets is None:
            return total
        # either may have wrapped, which TVM promises LLVM that int32 never does; the difference fits
        return (total.astype("int64") - self._offsets[(*pixel, lane)].astype("int64")).astype("int32")

    def _add(self, sums: Any, at: Sequence[Expression], inputs: Expression, weights: Expression) -> None:
        register = sums.vload([*at, 0], f"int32x{self._lanes}")
        add = self._way.add
        if self._shared and self._way.add_shared is not None:
            add = self._way.add_shared
        elif self._shared:
            word = tirx.Broadcast(tirx.reinterpret("int32", inputs), self._lanes)
            inputs = tirx.reinterpret(f"uint8x{4 * self._lanes}", word)
        store(sums, (*at, tirx.Ramp(0, 1, self._lanes)), add(register, inputs, weights, self._lanes))


def _dot_product(sums: Expression, inputs: Expression, weights: Expression, lanes: int) -> Expression:
    """VNNI: one instruction, exact (its namesake vpdpbusds saturates)."""
    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
    return tirx.call_llvm_pure_intrin(f"int32x{lanes}", name, sums, inputs, weights)


def _by_pairs(sums: Expression, inputs: Expression, weights: Expression, lanes: int) -> Expression:
    """The even bytes and the odd ones as int16, each multiplied and added in pairs."""
    for pair in zip(_unsigned_pairs(inputs, lanes), _signed_pairs(weights, lanes), strict=True):
        sums = sums + tirx.call_llvm_pure_intrin(f"int32x{lanes}", _MULTIPLY_ADD[lanes], *pair)
    return sums


def _unsigned_pairs(values: Expression, lanes: int) -> tuple[Expression, Expression]:
    """The even bytes and the odd ones as uint16x2*lanes."""
    pairs = tirx.reinterpret(f"uint16x{2 * lanes}", values)
    low, eight = (tirx.Broadcast(tirx.const(number, "uint16"), 2 * lanes) for number in (255, 8))
    return pairs & low, pairs >> eight


def _signed_pairs(values: Expression, lanes: int) -> tuple[Expression, Expression]:
    """The even bytes and the odd ones as int16x2*lanes."""
    pairs = tirx.reinterpret(f"int16x{2 * lanes}", values)
    eight = tirx.Broadcast(tirx.const(8, "int16"), 2 * lanes)
    return (pairs << eight) >> eight, pairs >> eight


def _one_by_one(sums: Expression, inputs: Expression, weights: Expression, lanes: int) -> Expression:
    """Each byte as int32."""

    def number(value: int) -> Expression:
        return tirx.Broadcast(tirx.const(value, "int32"), lanes)

    unsigned, signed = (tirx.reinterpret(f"int32x{lanes}", side) for side in (inputs, weights))
    products = (
        ((unsigned >> number(8 * q)) & number(255)) * ((signed << number(24 - 8 * q)) >> number(24)) for q in range(4)
    )
    return reduce(add, products, sums)


def _mixed(sums: Expression, inputs: Expression, weights: Expression, lanes: int) -> Expression:
    """Armv8.6's, one instruction."""
    return tirx.call_llvm_pure_intrin(f"int32x{lanes}", "llvm.aarch64.neon.usdot.v4i32.v16i8", sums, inputs, weights)


def _raised(sums: Expression, inputs: Expression, weights: Expression, lanes: int) -> Expression:
    """Armv8.2's, of unsigned bytes: each weight is 128 too large, which is 128 times the sum of the inputs in all."""
    raised = tirx.reinterpret(f"uint8x{4 * lanes}", weights) ^ tirx.Broadcast(tirx.const(128, "uint8"), 4 * lanes)
    return tirx.call_llvm_pure_intrin(f"int32x{lanes}", "llvm.aarch64.neon.udot.v4i32.v16i8", sums, raised, inputs)


def _widened(sums: Expression, inputs: Expression, weights: Expression, lanes: int) -> Expression:
    """Armv8's, of int16: the first bytes of each lane, the second, the third, the fourth."""
    of_weights, of_inputs = _signed_pairs(weights, lanes), _unsigned_pairs(inputs, lanes)
    for q in range(4):
        places = list(range(q // 2, 2 * lanes, 2))
        pair = tirx.Shuffle([of_weights[q % 2]], places), tirx.Shuffle([of_inputs[q % 2]], places)
        sums = sums + tirx.call_llvm_pure_intrin(f"int32x{lanes}", "llvm.aarch64.neon.smull.v4i32", *pair)
    return sums


def _widened_shared(sums: Expression, inputs: Expression, weights: Expression, lanes: int) -> Expression:
    """The same, where instructions take one of the four inputs for all lanes."""
    of_weights, of_inputs = _signed_pairs(weights, lanes), inputs.astype("int16x4")
    for q in range(4):
        weight = tirx.Shuffle([of_weights[q % 2]], list(range(q // 2, 2 * lanes, 2)))
        pair = weight, tirx.Shuffle([of_inputs], [q] * lanes)
        sums = sums + tirx.call_llvm_pure_intrin(f"int32x{lanes}", "llvm.aarch64.neon.smull.v4i32", *pair)
    return sums


@dataclass(frozen=True, slots=True)
class Way:
    """How products are added up.

    Attributes:
        add: from sums, inputs, weights and lanes to the new sums.
        add_shared: the same of inputs that are the same for all lanes, where there is a quicker way.
        offset: whether it sums too much: of the sums with weights of 0, the same inputs', which are to be subtracted.
        registers: that it needs beside the tile and what the tile reads.
    """

    add: Callable[[Expression, Expression, Expression, int], Expression]
    add_shared: Callable[[Expression, Expression, Expression, int], Expression] | None = None
    offset: bool = False
    registers: int = 0


_WAYS = {
    "vnni512": Way(_dot_product),
    "vnni256": Way(_dot_product),
    "madd": Way(_by_pairs),
    "plain": Way(_one_by_one),
    "usdot": Way(_mixed),
    "udot": Way(_raised, offset=True, registers=4),
    "smull": Way(_widened, _widened_shared, registers=12),
}
