"""Layers as an accelerator sees them: matrix products with shapes, bits and zeros, a row of arrays for each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.graph import ModelGraph
from search_spaces.layers import LayerSpec
from search_spaces.operators import Operator
from search_spaces.sparsity import Sparsity, block_of, window_of

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


class Zeros(IntEnum):
    """Where the zeros among a layer's weights are."""

    NONE = 0
    ANYWHERE = 1
    BLOCKS = 2
    """Rows, columns, kernels or tiles."""
    FILTERS = 3
    WINDOWS = 4
    """N of M neighbours stay."""


@dataclass(frozen=True, eq=False)
class Workloads:
    """Layers, one row each; all fields are arrays [N].

    A layer is `groups` products of a matrix [P, K] of what it reads with one [K, N] of weights (see `rows`, `depth`,
    `out_channels`). A linear layer is a convolution of 1 x 1 on as many pixels as it has positions.

    Attributes:
        batch: images in a pass.
        in_channels, out_channels: of one group.
        groups: of a convolution; heads of an attention product.
        kernel_height, kernel_width, stride_height, stride_width, dilation_height, dilation_width: of a convolution.
        in_height, in_width: pixels that it reads, borders not counted.
        out_height, out_width: pixels that it gives.
        steps: runs one after the other with the same weights: time steps of a recurrent layer.
        weight_bits, activation_bits: of each number; an accelerator may widen them, see `Accelerator.fitted`.
        weight_density: share of the weights that are not zero.
        activation_density: share of the values read that are not zero.
        zeros: where zeros among the weights are, one of `Zeros`.
        window: M of N:M zeros, else 0.
        product: 1 where the second matrix is no weights but computed, as in attention.
        reads_part, feeds_part: 1 where, of a layer that was taken apart (`search_spaces.factorisations`), the part
            before gives what this one reads, or the part after reads what this one gives; some hardware keeps that.
    """

    batch: IntArray
    in_channels: IntArray
    out_channels: IntArray
    groups: IntArray
    kernel_height: IntArray
    kernel_width: IntArray
    stride_height: IntArray
    stride_width: IntArray
    dilation_height: IntArray
    dilation_width: IntArray
    in_height: IntArray
    in_width: IntArray
    out_height: IntArray
    out_width: IntArray
    steps: IntArray
    weight_bits: IntArray
    activation_bits: IntArray
    weight_density: FloatArray
    activation_density: FloatArray
    zeros: IntArray
    window: IntArray
    product: IntArray
    reads_part: IntArray
    feeds_part: IntArray

    @classmethod
    def of(cls, rows: "Iterable[Workload]") -> "Workloads":
        """From rows."""
        columns = list(zip(*(row.values() for row in rows), strict=True)) or [()] * len(fields(cls))
        return cls(*(np.array(column, dtype=_dtype(name)) for column, name in zip(columns, _NAMES, strict=True)))

    def __len__(self) -> int:
        return len(self.batch)

    def take(self, index: npt.ArrayLike) -> "Workloads":
        """Rows by their numbers, or by a mask."""
        return Workloads(*(getattr(self, name)[np.asarray(index)] for name in _NAMES))

    def joined(self, other: "Workloads") -> "Workloads":
        """These rows, then the others."""
        return Workloads(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in _NAMES))

    def replace(self, **columns: npt.ArrayLike) -> "Workloads":
        """With other columns; a single number stands for every row."""
        values = {name: getattr(self, name) for name in _NAMES}
        for name, column in columns.items():
            values[name] = np.broadcast_to(np.asarray(column, dtype=_dtype(name)), self.batch.shape).copy()
        return Workloads(**values)

    @property
    def rows(self) -> IntArray:
        """P: rows of what is read, in one step."""
        return self.batch * self.out_height * self.out_width

    @property
    def kernel(self) -> IntArray:
        """Pixels of a kernel."""
        return self.kernel_height * self.kernel_width

    @property
    def depth(self) -> IntArray:
        """K: products that are summed for one number."""
        return self.in_channels * self.kernel

    @property
    def depthwise(self) -> npt.NDArray[np.bool_]:
        """Whether each group has one channel in and one out."""
        return np.asarray((self.groups > 1) & (self.in_channels == 1) & (self.out_channels == 1))

    @property
    def macs(self) -> IntArray:
        """Multiply-accumulates of the whole batch, those with zeros included."""
        return self.rows * self.depth * self.out_channels * self.groups * self.steps

    @property
    def weights(self) -> IntArray:
        """Numbers of the second matrix, zeros included."""
        return self.depth * self.out_channels * self.groups * np.where(self.product > 0, self.batch, 1)

    @property
    def inputs(self) -> IntArray:
        """Numbers read, each once, of all images and steps; what a stride leaves out is not counted."""
        return self.batch * self.in_channels * self.groups * self.read_height * self.read_width * self.steps

    @property
    def outputs(self) -> IntArray:
        """Numbers given, of all images and steps."""
        return self.rows * self.out_channels * self.groups * self.steps

    @property
    def read_height(self) -> IntArray:
        """Rows of the input that are read at all, borders not counted."""
        return _read(self.in_height, self.out_height, self.kernel_height, self.stride_height, self.dilation_height)

    @property
    def read_width(self) -> IntArray:
        """Columns of the input that are read at all, borders not counted."""
        return _read(self.in_width, self.out_width, self.kernel_width, self.stride_width, self.dilation_width)


_NAMES = tuple(field.name for field in fields(Workloads))


def _dtype(name: str) -> type:
    return np.float64 if name.endswith("density") else np.int64


def _read(size: IntArray, outputs: IntArray, kernel: IntArray, stride: IntArray, dilation: IntArray) -> IntArray:
    """Pixels along an axis between the first and the last that are read, without those between kernels."""
    span = (kernel - 1) * dilation + 1
    return np.asarray(np.minimum(size, (outputs - 1) * np.minimum(stride, span) + span))


@dataclass(frozen=True, slots=True)
class Workload:
    """One row of `Workloads`, see there."""

    batch: int = 1
    in_channels: int = 1
    out_channels: int = 1
    groups: int = 1
    kernel_height: int = 1
    kernel_width: int = 1
    stride_height: int = 1
    stride_width: int = 1
    dilation_height: int = 1
    dilation_width: int = 1
    in_height: int = 1
    in_width: int = 1
    out_height: int = 1
    out_width: int = 1
    steps: int = 1
    weight_bits: int = 32
    activation_bits: int = 32
    weight_density: float = 1.0
    activation_density: float = 1.0
    zeros: int = Zeros.NONE
    window: int = 0
    product: int = 0
    reads_part: int = 0
    feeds_part: int = 0

    def values(self) -> tuple[float, ...]:
        """In the order of the columns."""
        return tuple(getattr(self, name) for name in _NAMES)


def of_layer(spec: LayerSpec, batch: int = 1, *, steps: int = 1, activation_density: float = 1.0) -> Workload:
    """A convolution or linear layer.

    Args:
        spec: as it stands after a policy; with at most two spatial dimensions.
        batch: images in a pass.
        steps: of a recurrent layer, which runs once for each; `spec.positions` counts them all.
        activation_density: share of the values it reads that are not zero.
    """
    zeros, window = _zeros(spec.sparsity)
    common: dict[str, Any] = {
        "batch": batch,
        "steps": steps,
        "weight_bits": spec.weight_bits,
        "activation_bits": spec.activation_bits,
        "weight_density": spec.nonzeros / spec.weights if spec.weights else 1.0,
        "activation_density": activation_density,
        "zeros": zeros,
        "window": window,
    }
    if spec.kind != "conv":  # of a transposed convolution each pixel read is a row, and gives a whole kernel
        outputs = spec.out_channels // spec.groups * prod(spec.kernel)
        rows = spec.positions // steps
        inputs = spec.in_channels // spec.groups
        return Workload(
            in_channels=inputs, out_channels=outputs, groups=spec.groups, in_height=rows, out_height=rows, **common
        )
    height, width = (_axis(spec, axis) for axis in (0, 1))
    calls = max(1, -(-spec.positions // (height[5] * width[5])))  # a layer called several times sees a larger batch
    return Workload(
        in_channels=spec.in_channels // spec.groups,
        out_channels=spec.out_channels // spec.groups,
        groups=spec.groups,
        kernel_height=height[0],
        kernel_width=width[0],
        stride_height=height[1],
        stride_width=width[1],
        dilation_height=height[2],
        dilation_width=width[2],
        in_height=height[4],
        in_width=width[4],
        out_height=height[5],
        out_width=width[5],
        **{**common, "batch": batch * calls},
    )


def _axis(spec: LayerSpec, axis: int) -> tuple[int, int, int, int, int, int]:
    """Kernel, stride, dilation, padding and sizes along the height or width; a sequence is a map one pixel high."""
    place = axis - (2 - len(spec.kernel))
    if place < 0:
        return 1, 1, 1, 0, 1, 1
    sides = (spec.kernel, spec.stride, spec.dilation, spec.padding, spec.input_size, spec.output_size)
    return tuple(side[place] for side in sides)  # type: ignore[return-value]


def _zeros(sparsity: Sparsity | None) -> tuple[int, int]:
    if sparsity is None:
        return Zeros.NONE, 0
    if window := window_of(sparsity.pattern):
        return Zeros.WINDOWS, window[1]
    if sparsity.pattern == "filter":
        return Zeros.FILTERS, 0
    if block_of(sparsity.pattern) or sparsity.pattern in ("row", "column", "kernel"):
        return Zeros.BLOCKS, 0
    return Zeros.ANYWHERE, 0


def steps_of(graph: ModelGraph) -> dict[str, int]:
    """Time steps of the matrices that a recurrent layer multiplies its own state with, by layer."""
    prefixes = {operator.layer for operator in graph.full_operators if operator.kind in RECURRENT}
    return {
        layer.name: layer.positions
        for layer in graph.full_layers
        if ".weight_hh_" in f".{layer.name}" and any(layer.name.startswith(f"{prefix}.") for prefix in prefixes)
    }


def products_of(graph: ModelGraph) -> dict[str, tuple[Workload, ...]]:
    """The matrix products of attention, which no layer has weights for, by operator; batch 1, float32."""
    shapes = {operator.name: operator for operator in graph.operators}
    found = {}
    for operator in graph.operators:
        sides = [shapes[name].shape for name in operator.inputs[:3] if name in shapes]
        rows = _products(operator, sides)
        if rows:
            found[operator.name] = rows
    return found


def _products(operator: Operator, sides: Sequence[tuple[int, ...]]) -> tuple[Workload, ...]:
    if operator.kind == "scaled_dot_product_attention":
        query, key, value = sides
        heads = prod(query[:-2])
        return (_product(heads, query[-2], query[-1], key[-2]), _product(heads, query[-2], key[-2], value[-1]))
    if operator.kind in ("matmul", "bmm") and len(sides) == 2 and min(map(len, sides)) >= 2:
        left, right = sides
        return (_product(prod(left[:-2]), left[-2], left[-1], right[-1]),)
    return ()


def _product(heads: int, rows: int, depth: int, columns: int) -> Workload:
    return Workload(groups=heads, in_channels=depth, out_channels=columns, in_height=rows, out_height=rows, product=1)
