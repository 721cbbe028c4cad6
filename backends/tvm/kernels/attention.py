"""Scaled dot-product attention of all heads in one kernel."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from tvm import te

from backends.tvm.kernels import loops
from backends.tvm.kernels.base import (
    Array,
    Expression,
    block_count,
    pack_blocks,
    unpack_blocks,
    worth_threads,
)
from backends.tvm.kernels.epilogue import exp
from backends.tvm.kernels.tiles import choose_tile
from backends.tvm.target import Cpu

_OTHER_REGISTERS = 4
"""Vector registers that a tile of scores leaves free: one for the queries, and for a broadcast key."""

_Number = Callable[[Expression, Expression], Expression]
"""A number by token and channel of a head."""


@dataclass(frozen=True, slots=True)
class Attention(loops.WrittenKernel):
    """softmax(q k^T scale) v for each head, without mask or dropout.

    Operands: query, key, value, [N, blocks, 1, T, lanes] each, with as many tokens in key as in value; all three may be
    the same buffer, that of a joint projection. Head h of each begins at block first + h * blocks_per_head, so a head's
    channels start a block; where head_dim is no multiple of the lanes, what lies behind them in its last block does not
    matter (behind a value it comes out, weighed, behind the result).

    Attributes:
        query, key, value: shapes of the buffers.
        heads: number of heads.
        head_dim: channels of a head.
        first: block at which the first head begins in query, key and value.
        scale: of the scores; None for 1/sqrt(head_dim).
    """

    kind: ClassVar[str] = "attention"

    query: tuple[int, ...]
    key: tuple[int, ...]
    value: tuple[int, ...]
    heads: int
    head_dim: int
    first: tuple[int, int, int] = (0, 0, 0)
    scale: float | None = None

    @property
    def blocks_per_head(self) -> int:
        """Blocks that a head takes."""
        return block_count(self.head_dim, self.query[4])

    @property
    def output_shape(self) -> tuple[int, ...]:
        """[N, heads * blocks_per_head, 1, T of the query, lanes]."""
        return self.query[0], self.heads * self.blocks_per_head, *self.query[2:]

    @property
    def work(self) -> float:
        """Multiply-adds of both products."""
        return 2.0 * self.query[0] * self.heads * self.query[3] * self.key[3] * self.head_dim

    def reference(self, operands: Sequence[Array]) -> Array:
        """torch's attention."""
        query, key, value = (self._heads(operand, first) for operand, first in zip(operands, self.first, strict=True))
        query, key = query[..., : self.head_dim], key[..., : self.head_dim]
        result = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        channels = result.transpose(2, 3).reshape(self.query[0], -1, 1, self.query[3])
        return pack_blocks(channels, self.query[4])

    def _heads(self, buffer: Array, first: int) -> torch.Tensor:
        """[N, heads, T, channels of the head's blocks]."""
        blocks = buffer[:, first : first + self.heads * self.blocks_per_head]
        channels = torch.from_numpy(unpack_blocks(blocks))
        return channels.reshape(buffer.shape[0], self.heads, -1, buffer.shape[3]).transpose(2, 3).contiguous()

    @property
    def operand_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of query, key and value."""
        return {"query": self.query, "key": self.key, "value": self.value}

    def write(self, cpu: Cpu, *buffers: Any) -> None:
        """For a head and one vector of queries at a time: scores of all keys, their exponentials, the weighed values.

        Queries lie across the lanes, so the softmax is over whole vectors and no number of tokens is padded.
        """
        query, key, value, out = buffers
        lanes, per_head = self.query[4], self.blocks_per_head
        cover = loops.Cover(self.query[3], min(self.query[3], lanes))
        threads = worth_threads(self.work, cpu)
        with loops.spread(self.query[0] * self.heads * cover.count, threads) as index:
            n, head = index // (cover.count * self.heads), index // cover.count % self.heads
            tile = index % cover.count
            start = cover.start(tile)
            first = [block + head * per_head for block in self.first]

            def query_at(v: Expression, d: Expression) -> Expression:
                token = start + (v if cover.width == lanes else te.min(v, cover.width - 1))
                return query[n, first[0] + d // lanes, 0, token, d % lanes]

            def key_at(j: Expression, d: Expression) -> Expression:
                return key[n, first[1] + d // lanes, 0, j, d % lanes]

            scores, most = self._scores(query_at, key_at, cpu)
            share = self._exponentials(scores, most)
            shape = choose_tile(per_head, 1, cover.width, cpu)
            with loops.serial(per_head // shape.blocks) as b, loops.serial(cover.width // shape.columns) as r:
                block, row = b * shape.blocks, r * shape.columns
                sums = loops.registers(lanes, shape.columns, shape.blocks)
                with loops.serial(self.key[3]) as j:
                    for (i, o), register in sums.items():
                        with loops.vector(lanes) as v:
                            weighed = scores[j, row + i] * value[n, first[2] + block + o, 0, j, v]
                            loops.add(register, (v,), weighed)
                for (i, o), register in sums.items():
                    token = start + row + i
                    with loops.when(cover.owns(tile, token)), loops.then(), loops.vector(lanes) as v:
                        place = n, head * per_head + block + o, 0, token, v
                        loops.store(out, place, register[v] * share[row + i])

    def _scores(self, query: _Number, key: _Number, cpu: Cpu) -> tuple[Any, Any]:
        """[keys, lanes] scores of the queries in the lanes, and [lanes] the largest of each query."""
        lanes, keys = self.query[4], self.key[3]
        transposed = loops.scratch(self.head_dim, lanes)
        scale = loops.constant(self.head_dim**-0.5 if self.scale is None else self.scale)
        with loops.serial(self.head_dim) as d, loops.vector(lanes) as v:
            loops.store(transposed, (d, v), query(v, d) * scale)
        scores, most = loops.scratch(keys, lanes), loops.scratch(lanes)
        loops.fill(most, lanes, loops.LEAST)
        cover = loops.Cover.of(keys, cpu.registers - _OTHER_REGISTERS)
        with loops.serial(cover.count) as tile:
            first = cover.start(tile)
            sums = loops.registers(lanes, cover.width)
            with loops.serial(self.head_dim) as d:
                for (j,), register in sums.items():
                    with loops.vector(lanes) as v:
                        loops.add(register, (v,), key(first + j, d) * transposed[d, v])
            for (j,), register in sums.items():
                with loops.vector(lanes) as v:
                    loops.store(scores, (first + j, v), register[v])
                    loops.store(most, (v,), te.max(most[v], register[v]))
        return scores, most

    def _exponentials(self, scores: Any, most: Any) -> Any:
        """Turns scores into their exponentials; [lanes] one over their sum."""
        lanes = self.query[4]
        share = loops.scratch(lanes)
        loops.fill(share, lanes, 0.0)
        with loops.serial(self.key[3]) as j, loops.vector(lanes) as v:
            loops.store(scores, (j, v), exp(scores[j, v] - most[v]))
            loops.add(share, (v,), scores[j, v])
        with loops.vector(lanes) as v:
            loops.store(share, (v,), loops.constant(1.0) / share[v])
        return share
