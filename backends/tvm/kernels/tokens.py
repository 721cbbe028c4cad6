"""Sequences of tokens, which lie in memory as maps of one row: putting them behind one another.

A map becomes tokens and tokens a map by another shape of the same buffer, [N, blocks, H, W, lanes] and
[N, blocks, 1, H*W, lanes]; taking some tokens out is `movement.Gather`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np

from backends.tvm.kernels import loops
from backends.tvm.kernels.base import Array, worth_threads
from backends.tvm.target import Cpu


@dataclass(frozen=True, slots=True)
class ConcatColumns(loops.WrittenKernel):
    """Columns of several buffers behind one another: a class token before the patches.

    Operands: the buffers.

    Attributes:
        sources: their shapes, [N, blocks, H, W, lanes], alike but for W; those with N = 1 are repeated over the batch.
    """

    kind: ClassVar[str] = "concat_columns"

    sources: tuple[tuple[int, ...], ...]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """[greatest N, blocks, H, sum of W, lanes]."""
        _, blocks, rows, _, lanes = self.sources[0]
        return max(shape[0] for shape in self.sources), blocks, rows, sum(shape[3] for shape in self.sources), lanes

    @property
    def operand_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the buffers."""
        return {f"source{i}": shape for i, shape in enumerate(self.sources)}

    def write(self, cpu: Cpu, *buffers: Any) -> None:
        """One straight copy after the other."""
        *sources, out = buffers
        batch, blocks, rows, _, lanes = self.output_shape
        starts = accumulate((shape[3] for shape in self.sources), initial=0)
        with loops.spread(batch * blocks, worth_threads(self.work, cpu)) as index, loops.serial(rows) as h:
            n, o = index // blocks, index % blocks
            for source, shape, start in zip(sources, self.sources, starts, strict=False):
                with loops.serial(shape[3]) as w, loops.vector(lanes) as v:
                    loops.store(out, (n, o, h, start + w, v), source[n if shape[0] > 1 else 0, o, h, w, v])

    def reference(self, operands: Sequence[Array]) -> Array:
        """numpy's concatenation, which is torch's."""
        batch = self.output_shape[0]
        return np.concatenate([np.broadcast_to(part, (batch, *part.shape[1:])) for part in operands], axis=3)
