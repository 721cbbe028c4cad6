"""Normalisation: over the channels of each pixel, over groups of channels of a whole map; softmax over channels.

Means are taken first and squared differences from them second: in one pass, inputs far from zero would leave nothing
of the variance.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add as plus
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from tvm import te, tirx

from backends.tvm.kernels import loops
from backends.tvm.kernels.base import Array, Expression, pack_blocks, unpack_blocks, worth_threads
from backends.tvm.kernels.epilogue import exp
from backends.tvm.kernels.tiles import divisors
from backends.tvm.target import Cpu

_SUMS = 8
"""Sums that run side by side, to hide the latency of an addition."""

Number = Callable[[Expression, int, Expression], Expression]
"""A number by block, pixel of the tile and lane."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """A tile of neighbouring pixels.

    Attributes:
        width: pixels of the tile.
        channels: that are real.
        lanes: of a block.
    """

    width: int
    channels: int
    lanes: int

    def reduce(
        self, number: Number, combine: Callable[[Expression, Expression], Expression] = plus, start: float = 0.0
    ) -> list[Any]:
        """For each pixel the numbers of its real channels combined: a buffer that holds the result first."""
        registers = [loops.scratch(self.lanes) for _ in range(self.width)]
        for register in registers:
            loops.fill(register, self.lanes, start)
        whole, rest = divmod(self.channels, self.lanes)
        if whole:
            with loops.serial(whole) as o:
                for p, register in enumerate(registers):
                    with loops.vector(self.lanes) as v:
                        loops.store(register, (v,), combine(register[v], number(o, p, v)))
        if rest:
            for p, register in enumerate(registers):
                with loops.vector(self.lanes) as v:
                    value = tirx.Select(v < rest, number(whole, p, v), loops.constant(start))
                    loops.store(register, (v,), combine(register[v], value))
        for register in registers:
            loops.fold(register, self.lanes, combine)
        return registers


class PerPixel(loops.WrittenKernel):
    """What is computed from the channels of each pixel by itself.

    Attributes:
        source: shape of the input buffer, [N, blocks, H, W, lanes].
        channels: that are real, the first of the buffer; the lanes behind them count nothing.
    """

    source: tuple[int, int, int, int, int]
    channels: int

    @property
    def output_shape(self) -> tuple[int, ...]:
        """As the input."""
        return self.source

    @abstractmethod
    def result(self, pixels: Pixels, x: Number, factors: Sequence[Any]) -> Number:
        """Writes what a tile needs to know of itself, and gives its results, x being its inputs."""

    def write(self, cpu: Cpu, *buffers: Any) -> None:
        """Tile by tile, each so small that all its passes but the first find the inputs in the cache."""
        source, *factors, out = buffers
        batch, blocks, rows, columns, lanes = self.source
        cover = loops.Cover.of(columns, _SUMS)
        with loops.spread(batch * rows * cover.count, worth_threads(self.work, cpu)) as index:
            tile = index % cover.count
            n, h, first = index // (cover.count * rows), index // cover.count % rows, cover.start(tile)

            def x(o: Expression, p: int, v: Expression) -> Expression:
                return source[n, o, h, first + p, v]

            result = self.result(Pixels(cover.width, self.channels, lanes), x, factors)
            for p in range(cover.width):
                mine = cover.owns(tile, first + p)
                with loops.when(mine), loops.then(), loops.serial(blocks) as o, loops.vector(lanes) as v:
                    loops.store(out, (n, o, h, first + p, v), result(o, p, v))


@dataclass(frozen=True, slots=True)
class LayerNorm(PerPixel):
    """(x - mean) / sqrt(variance + eps) gamma + beta over the channels of each pixel.

    Operands: input, gamma [blocks, lanes], beta [blocks, lanes].

    Attributes:
        source, channels: see `PerPixel`.
        eps: added to the variance.
    """

    kind: ClassVar[str] = "layer_norm"

    source: tuple[int, int, int, int, int]
    channels: int
    eps: float = 1e-5

    @property
    def operand_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of input, gamma and beta."""
        return _with_factors(self.source)

    def result(self, pixels: Pixels, x: Number, factors: Sequence[Any]) -> Number:
        """Mean, variance, result."""
        gamma, beta = factors
        share = loops.constant(1.0 / self.channels)
        means = pixels.reduce(x)
        for mean in means:
            loops.store(mean, (0,), mean[0] * share)

        def centred(o: Expression, p: int, v: Expression) -> Expression:
            return x(o, p, v) - means[p][0]

        scales = pixels.reduce(lambda o, p, v: centred(o, p, v) * centred(o, p, v))
        for scale in scales:
            loops.store(scale, (0,), _inverse_root(scale[0] * share, self.eps))
        return lambda o, p, v: centred(o, p, v) * scales[p][0] * gamma[o, v] + beta[o, v]

    def reference(self, operands: Sequence[Array]) -> Array:
        """torch's statistics of the real channels, applied to all."""
        x = torch.from_numpy(unpack_blocks(operands[0]))
        gamma, beta = (torch.from_numpy(operand).reshape(-1, 1, 1) for operand in operands[1:])
        variance, mean = torch.var_mean(x[:, : self.channels], dim=1, correction=0, keepdim=True)
        return pack_blocks((x - mean) * torch.rsqrt(variance + self.eps) * gamma + beta, self.source[4])


@dataclass(frozen=True, slots=True)
class Softmax(PerPixel):
    """Softmax over the channels of each pixel; zero in the lanes behind them.

    Attributes:
        source, channels: see `PerPixel`.
    """

    kind: ClassVar[str] = "softmax"

    source: tuple[int, int, int, int, int]
    channels: int

    @property
    def operand_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the input."""
        return {"source": self.source}

    def result(self, pixels: Pixels, x: Number, factors: Sequence[Any]) -> Number:
        """Maximum, exponentials, their sum, result."""
        most = pixels.reduce(x, te.max, loops.LEAST)
        powers = loops.scratch(self.source[1], pixels.width, pixels.lanes)
        with loops.serial(self.source[1]) as o:
            for p in range(pixels.width):
                with loops.vector(pixels.lanes) as v:
                    real = o * pixels.lanes + v < self.channels
                    power = tirx.Select(real, exp(x(o, p, v) - most[p][0]), loops.constant(0.0))
                    loops.store(powers, (o, p, v), power)
        shares = pixels.reduce(lambda o, p, v: powers[o, p, v])
        for share in shares:
            loops.store(share, (0,), loops.constant(1.0) / share[0])
        return lambda o, p, v: powers[o, p, v] * shares[p][0]

    def reference(self, operands: Sequence[Array]) -> Array:
        """torch's softmax of the real channels."""
        channels = unpack_blocks(operands[0])
        result = np.zeros_like(channels)
        result[:, : self.channels] = F.softmax(torch.from_numpy(channels[:, : self.channels]), dim=1)
        return pack_blocks(result, self.source[4])


@dataclass(frozen=True, slots=True)
class GroupNorm(loops.WrittenKernel):
    """(x - mean) / sqrt(variance + eps) gamma + beta over the pixels and channels of each group; instance norm where
    there are as many groups as channels. Beta in the lanes behind the channels.

    Operands: input, gamma [blocks, lanes], beta [blocks, lanes].

    Attributes:
        source: shape of the input buffer, [N, blocks, H, W, lanes].
        channels: that are real, the first of the buffer.
        groups: of neighbouring channels, all alike; they need not begin with a block.
        eps: added to the variance.
    """

    kind: ClassVar[str] = "group_norm"

    source: tuple[int, int, int, int, int]
    channels: int
    groups: int
    eps: float = 1e-5

    @property
    def output_shape(self) -> tuple[int, ...]:
        """As the input."""
        return self.source

    @property
    def operand_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of input, gamma and beta."""
        return _with_factors(self.source)

    def write(self, cpu: Cpu, *buffers: Any) -> None:
        """Mean and squared differences of each channel, of these those of each group, then the result."""
        source, gamma, beta, out = buffers
        batch, blocks, rows, columns, lanes = self.source
        means, scales = (loops.scratch(batch, blocks, lanes) for _ in range(2))
        threads = worth_threads(self.work, cpu)
        with loops.spread(batch * blocks, threads) as index:
            self._channel_statistics(source, means, scales, index // blocks, index % blocks)
        with loops.serial(batch) as n:
            self._group_statistics(means, scales, n)
        with loops.spread(batch * blocks, threads) as index, loops.serial(rows) as h, loops.serial(columns) as w:
            n, o = index // blocks, index % blocks
            with loops.vector(lanes) as v:
                centred = source[n, o, h, w, v] - means[n, o, v]
                loops.store(out, (n, o, h, w, v), centred * scales[n, o, v] * gamma[o, v] + beta[o, v])

    def _channel_statistics(self, source: Any, means: Any, squares: Any, n: Expression, o: Expression) -> None:
        """The mean of each channel of a block, and the sum of the squared differences from it."""
        *_, rows, columns, lanes = self.source
        width = max(divisor for divisor in divisors(columns) if divisor <= _SUMS)

        def total(number: Callable[[Expression, Expression, Expression], Expression]) -> Callable[[Any], Expression]:
            sums = loops.registers(lanes, width)
            with loops.serial(rows) as h, loops.serial(columns // width) as w:
                for (p,), register in sums.items():
                    with loops.vector(lanes) as v:
                        loops.add(register, (v,), number(h, w * width + p, v))
            return lambda v: reduce(plus, (register[v] for register in sums.values()))

        sums = total(lambda h, w, v: source[n, o, h, w, v])
        mean = loops.scratch(lanes)
        with loops.vector(lanes) as v:
            loops.store(mean, (v,), sums(v) * loops.constant(1.0 / (rows * columns)))

        def centred(h: Expression, w: Expression, v: Expression) -> Expression:
            return source[n, o, h, w, v] - mean[v]

        sums = total(lambda h, w, v: centred(h, w, v) * centred(h, w, v))
        with loops.vector(lanes) as v:
            loops.store(means, (n, o, v), mean[v])
            loops.store(squares, (n, o, v), sums(v))

    def _group_statistics(self, means: Any, squares: Any, n: Expression) -> None:
        """In the place of each channel's mean its group's, in the place of the squares its group's scale."""
        *_, rows, columns, lanes = self.source
        each, pixels = self.channels // self.groups, rows * columns
        mean, square = loops.scratch(1), loops.scratch(1)
        with loops.serial(self.groups) as group:

            def at(i: Expression) -> tuple[Expression, ...]:
                channel = group * each + i
                return n, channel // lanes, channel % lanes

            for total in (mean, square):
                loops.store(total, (0,), loops.constant(0.0))
            with loops.serial(each) as i:
                loops.add(mean, (0,), means[at(i)] * loops.constant(1.0 / each))
            with loops.serial(each) as i:
                apart = means[at(i)] - mean[0]
                loops.add(square, (0,), squares[at(i)] + apart * apart * loops.constant(pixels))
            scale = _inverse_root(square[0] * loops.constant(1.0 / (each * pixels)), self.eps)
            loops.store(square, (0,), scale)
            with loops.serial(each) as i:
                loops.store(means, at(i), mean[0])
                loops.store(squares, at(i), square[0])
        if behind := self.source[1] * lanes - self.channels:
            with loops.serial(behind) as i:
                channel = self.channels + i
                loops.store(squares, (n, channel // lanes, channel % lanes), loops.constant(0.0))

    def reference(self, operands: Sequence[Array]) -> Array:
        """torch's group norm of the real channels, beta behind them."""
        real = [torch.from_numpy(operand.reshape(-1)[: self.channels]) for operand in operands[1:]]
        source, beta = unpack_blocks(operands[0]), operands[2].reshape(-1)
        result = np.broadcast_to(beta[:, None, None], source.shape).copy()
        channels = torch.from_numpy(source[:, : self.channels])
        result[:, : self.channels] = F.group_norm(channels, self.groups, real[0], real[1], self.eps)
        return pack_blocks(result, self.source[4])


def _with_factors(source: tuple[int, int, int, int, int]) -> dict[str, tuple[int, ...]]:
    """Shapes of an input, and of the factor and the summand of each of its channels."""
    return {"source": source, "gamma": (source[1], source[4]), "beta": (source[1], source[4])}


def _inverse_root(variance: Expression, eps: float) -> Expression:
    return loops.constant(1.0) / tirx.sqrt(variance + loops.constant(eps))
