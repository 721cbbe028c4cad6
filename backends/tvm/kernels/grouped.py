"""Grouped convolution: each output block reads the inputs of the groups that it touches, and of no others."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from tvm import te

from backends.tvm.kernels.base import Array, Window, block_count, framed, unpack_blocks
from backends.tvm.kernels.convolution import TiledConvolution
from backends.tvm.kernels.epilogue import NO_EPILOGUE, Epilogue
from backends.tvm.target import Cpu


@dataclass(frozen=True, slots=True)
class Groups:
    """How groups of channels meet the blocks in which the outputs lie.

    A run of `alike` output blocks reads the same stretch of `reads` inputs. Where groups end at block boundaries, a run
    is a group's blocks and reads the group's inputs: nothing is computed twice. Where a block spans several groups, its
    stretch is the inputs of them all, with zero weights for the lanes of the others.

    Attributes:
        count: groups.
        inputs: channels that each group reads.
        outputs: channels that each group writes.
        lanes: of a block.
    """

    count: int
    inputs: int
    outputs: int
    lanes: int

    @property
    def blocks(self) -> int:
        """Output blocks."""
        return block_count(self.count * self.outputs, self.lanes)

    @property
    def alike(self) -> int:
        """Blocks of a run: as many as it takes for groups to end at a block's end, if that makes no block read more."""
        common = math.lcm(self.outputs, self.lanes)
        run = common // self.lanes
        return run if self.blocks % run == 0 and common // self.outputs <= self._most_groups(1) else 1

    @property
    def reads(self) -> int:
        """Inputs that a run of blocks reads."""
        return self.inputs * self._most_groups(self.alike)

    @property
    def width(self) -> int:
        """Neighbouring inputs that never straddle two blocks."""
        return math.gcd(self.inputs, self.lanes)

    def first(self, block: Any) -> Any:
        """The first input that an output block reads, of an int or of an expression."""
        group = block // self.alike * self.alike * self.lanes // self.outputs
        last = (self.count - self._most_groups(self.alike)) * self.inputs  # the last run may span fewer groups
        return min(group * self.inputs, last) if isinstance(block, int) else te.min(group * self.inputs, last)

    def _most_groups(self, run: int) -> int:
        """The most groups that a run of so many blocks touches."""
        extent = run * self.lanes
        channels = self.count * self.outputs
        return max(
            (min(start + extent, channels) - 1) // self.outputs - start // self.outputs + 1
            for start in range(0, channels, extent)
        )


def pack_grouped(weight: Array, groups: int, lanes: int) -> Array:
    """Weights [G*O, I, kh, kw] of a grouped convolution -> [blocks, kh, kw, steps, width, lanes] as `GroupedConv2d`
    reads them, zero where an output does not read an input."""
    channels, inputs, *kernel = weight.shape
    layout = Groups(groups, inputs, channels // groups, lanes)
    packed = np.zeros((layout.blocks, lanes, layout.reads, *kernel), dtype=np.float32)
    for channel in range(channels):
        block, lane = divmod(channel, lanes)
        start = channel // layout.outputs * inputs - layout.first(block)
        packed[block, lane, start : start + inputs] = weight[channel]
    split = packed.reshape(layout.blocks, lanes, layout.reads // layout.width, layout.width, *kernel)
    return np.ascontiguousarray(split.transpose(0, 4, 5, 2, 3, 1))


@dataclass(frozen=True, slots=True)
class GroupedConv2d(TiledConvolution):
    """Convolution in groups of any size, with bias, residual and activation.

    Operands: the input with its channels in order, weights from `pack_grouped`, bias [blocks, lanes], residual. Output
    channels come in order.

    Attributes:
        source: shape of the input buffer [N, blocks, H, W, lanes].
        groups: how the channels are grouped.
        size: output rows and columns.
    """

    kind: ClassVar[str] = "grouped_conv2d"

    source: tuple[int, int, int, int, int]
    groups: Groups
    size: tuple[int, int]
    window: Window
    epilogue: Epilogue = NO_EPILOGUE

    @property
    def output_shape(self) -> tuple[int, ...]:
        """[N, blocks, rows, columns, lanes]."""
        return self.source[0], self.groups.blocks, *self.size, self.groups.lanes

    @property
    def alike(self) -> int:
        """Blocks of a run."""
        return self.groups.alike

    @property
    def steps(self) -> int:
        """Over the inputs of a run."""
        return self.groups.reads // self.groups.width

    @property
    def width(self) -> int:
        """Of the groups."""
        return self.groups.width

    def position(self, block: Any, step: Any) -> Any:
        """Within the stretch of the block's run."""
        return self.groups.first(block) + step * self.groups.width

    def example_operands(self, cpu: Cpu, generator: np.random.Generator) -> list[Array]:
        """Random, with the zeros that the layout of the weights asks for."""
        operands = super(GroupedConv2d, self).example_operands(cpu, generator)
        operands[1] = pack_grouped(self._filters(operands[1]), self.groups.count, self.groups.lanes)
        return operands

    def reference(self, operands: Sequence[Array]) -> Array:
        """torch's, group by group."""
        source, weight, bias, *_ = operands
        inputs = self.groups.count * self.groups.inputs
        image = framed(unpack_blocks(source)[:, :inputs], self.window, self.size)
        filters = torch.from_numpy(self._filters(weight))
        sums = F.conv2d(image, filters, None, self.window.stride, 0, self.window.dilation, self.groups.count)
        sums = F.pad(sums, (0, 0, 0, 0, 0, bias.size - len(filters))) + torch.from_numpy(bias.reshape(-1, 1, 1))
        return self.finished(sums, operands)

    def _filters(self, weight: Array) -> Array:
        """[G*O, I, kh, kw] out of the packed weights."""
        groups = self.groups
        rows = weight.transpose(0, 5, 3, 4, 1, 2).reshape(groups.blocks * groups.lanes, -1, *self.window.kernel)
        filters = []
        for channel in range(groups.count * groups.outputs):
            start = channel // groups.outputs * groups.inputs - groups.first(channel // groups.lanes)
            filters.append(rows[channel, start : start + groups.inputs])
        return np.stack(filters)
