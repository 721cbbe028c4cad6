"""Cycles of three ways to skip products with zeros.

columns       A value read is given to all lanes; each multiplies it by the weights that it has of that column, one
              after the other (EIE, ESE; NullHop, with all weights).
dot_products  Each lane sums the products of an output of its own, several at once; a selector finds their values
              (Cambricon-X, Cambricon-S; sparse tensor cores).
cartesian     Each lane has a tile of the map and multiplies several of its values by several weights of the same
              input channel, all with all (SCNN).

All lanes wait for the busiest (see `imbalance`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from backends.accelerators.imbalance import busiest
from backends.accelerators.sparse_formats import entries
from backends.accelerators.workloads import FloatArray, IntArray, Workloads, Zeros


@dataclass(frozen=True)
class Lanes:
    """What works side by side.

    Attributes:
        count: of lanes.
        rows: numbers of parts that lanes may be divided into, each with rows (pixels, images) of its own.
        multipliers: of a lane at the layers' bits, [N]; of a cartesian product those along the weights.
        values: of a lane that are multiplied by them all at once.
        queue: slices of work that a lane may be ahead of the slowest.
        selector: numbers of a dot product that are looked through in a cycle; None where nothing is selected.
        shared_index: whether all lanes have their zeros at the same places.
        index_bits: of run lengths whose stored zeros take a cycle each; None where they take none.
        accumulators: partial sums of a lane; None where it has enough.
        group: most output channels that a lane works on at once.
    """

    count: int
    rows: tuple[int, ...]
    multipliers: IntArray
    values: int
    queue: int
    selector: int | None
    shared_index: bool
    index_bits: int | None
    accumulators: int | None
    group: int


Dataflow = Callable[[Workloads, FloatArray, FloatArray, Lanes], FloatArray]
"""Cycles of layers, [N], given the shares of weights and of values read that are not skipped, [N] each."""


def columns(works: Workloads, weights: FloatArray, values: FloatArray, lanes: Lanes) -> FloatArray:
    """A column takes a cycle even where a lane has no weight in it: its pointers are read."""

    def cycles(parts: int) -> FloatArray:
        size = _shared(works.out_channels, lanes.count // parts)
        kept = size * weights if lanes.index_bits is None else entries(size, weights, lanes.index_bits)
        read = _shared(works.rows, parts) * works.depth * values * works.groups * works.steps
        busy = busiest(size, kept / size, works.out_channels / size, read, lanes.queue, least=1)
        return np.asarray(read * np.maximum(busy / lanes.multipliers, 1))

    return _least(cycles, lanes)


def dot_products(works: Workloads, weights: FloatArray, values: FloatArray, lanes: Lanes) -> FloatArray:
    """Rounded up to whole cycles for each output, where nonzeros fall at random by the mean of what rounding up adds.

    Rounding the mean of the busiest lane itself up would make more lanes slower than fewer, of which some stand idle.
    """
    balanced = lanes.shared_index | (works.zeros == Zeros.WINDOWS)

    def cycles(parts: int) -> FloatArray:
        outputs = _shared(works.out_channels, lanes.count // parts)
        together = np.where(balanced, 1, works.out_channels / outputs)
        rounds = _shared(works.rows, parts) * outputs * works.groups * works.steps
        kept = busiest(works.depth, weights * values, together, rounds, lanes.queue)
        slowest = np.zeros(len(works)) if lanes.selector is None else works.depth / lanes.selector
        mean = np.maximum(kept / lanes.multipliers + (1 - 1 / lanes.multipliers) / 2, 1)
        at_random = np.minimum(mean, _ceil(works.depth / lanes.multipliers))
        busy = np.where(balanced | (weights * values == 1), _ceil(kept / lanes.multipliers), at_random)
        return np.asarray(rounds * np.maximum(busy, _ceil(slowest)))

    return _least(cycles, lanes)


def cartesian(works: Workloads, weights: FloatArray, values: FloatArray, lanes: Lanes) -> FloatArray:
    """Of a strided convolution the kernel is taken apart into one for each phase, whose values and weights all meet.

    A lane has output channels of its own instead of a tile where that is faster, in a linear layer: then only one of
    its values at once is of use.
    """
    linear = is_linear(works)
    planar = np.min([_planar(works, weights, values, lanes, grid) for grid in _grids(lanes.count)], axis=0)
    return np.asarray(np.where(linear, np.minimum(planar, _by_outputs(works, weights, values, lanes)), planar))


def _planar(
    works: Workloads, weights: FloatArray, values: FloatArray, lanes: Lanes, grid: tuple[int, int]
) -> FloatArray:
    phase_h = np.minimum(works.stride_height, works.kernel_height)
    phase_w = np.minimum(works.stride_width, works.kernel_width)
    phases = phase_h * phase_w
    height, width = _shared(works.out_height, grid[0]), _shared(works.out_width, grid[1])
    sums = (height + works.kernel_height - 1) * (width + works.kernel_width - 1)
    room = lanes.accumulators or int(sums.max(initial=1)) * lanes.group
    pieces = -(-sums // room)
    read_height, read_width = _shared(works.read_height, grid[0]), _shared(works.read_width, grid[1])
    tile = _shared(read_height * read_width, phases * pieces)
    group = np.clip(room // sums, 1, lanes.group)
    taps = -(-works.kernel_height // phase_h) * -(-works.kernel_width // phase_w)
    whole, rest = np.divmod(works.out_channels, group)
    steps = whole * expected_ceil(group * taps, weights, lanes.multipliers)
    steps = steps + np.where(rest > 0, expected_ceil(np.maximum(rest, 1) * taps, weights, lanes.multipliers), 0.0)
    most = works.in_channels * -(-tile // lanes.values)
    share = expected_ceil(tile, values, lanes.values) / -(-tile // lanes.values)
    busy = -(-works.read_height // read_height) * -(-works.read_width // read_width)
    read = busiest(most, share, busy, -(-works.out_channels // group), lanes.queue)
    return np.asarray(works.batch * works.groups * works.steps * phases * pieces * read * steps)


def _by_outputs(works: Workloads, weights: FloatArray, values: FloatArray, lanes: Lanes) -> FloatArray:
    outputs = _shared(works.out_channels, lanes.count)
    most = -(-outputs // lanes.multipliers)
    share = expected_ceil(outputs, weights, lanes.multipliers) / most
    read = works.rows * works.in_channels * values * works.groups * works.steps
    return np.asarray(read * busiest(most, share, works.out_channels / outputs, read, lanes.queue))


def is_linear(works: Workloads) -> npt.NDArray[np.bool_]:
    """Which layers are matrix products, such as linear layers; a 1 x 1 convolution of a map of one column is one."""
    return np.asarray((works.kernel == 1) & (works.out_width == 1) & (works.in_width == 1) & (works.stride_height == 1))


def expected_ceil(size: IntArray, density: FloatArray, at_once: IntArray | int) -> FloatArray:
    """Mean of the steps that nonzeros take, so many at once, of `size` numbers.

    It is the sum over j of the chance of more than j at_once nonzeros, from j = 1 on by the normal approximation of the
    binomial distribution; exact where all numbers are nonzeros.
    """
    mean = size * density
    spread = np.maximum(np.sqrt(mean * (1 - density)), 1e-9)
    most = -(-size // at_once)
    number = np.arange(int(most.max(initial=0)))
    limit = number * np.broadcast_to(at_once, size.shape)[:, None] + 0.5
    chance = ndtr((mean[:, None] - limit) / spread[:, None])
    chance[:, :1] = 1 - (1 - density[:, None]) ** size[:, None]
    return np.asarray((chance * (number < most[:, None])).sum(axis=1))


def _grids(count: int) -> list[tuple[int, int]]:
    """Tiles along the height and the width: as nearly square as powers of two go, or all along one."""
    side = 1 << (count.bit_length() - 1) // 2
    return sorted({(side, count // side), (count // side, side), (count, 1), (1, count)})


def _least(cycles: Callable[[int], FloatArray], lanes: Lanes) -> FloatArray:
    """Of all ways to divide the lanes."""
    return np.asarray(np.min([cycles(parts) for parts in lanes.rows if parts <= lanes.count], axis=0))


def _shared(size: IntArray, parts: int | IntArray) -> IntArray:
    """What the first of so many parts gets."""
    return np.asarray(-(-size // parts))


def _ceil(cycles: FloatArray) -> FloatArray:
    return np.asarray(np.ceil(cycles * (1 - 1e-12)))
