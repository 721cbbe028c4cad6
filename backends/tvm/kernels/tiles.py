"""Which part of an output one pass of the innermost loops computes in registers: a model, not a search."""

from dataclasses import dataclass

from backends.tvm.kernels.loops import Cover
from backends.tvm.target import Cpu

_MOST_BLOCKS = 12


@dataclass(frozen=True, slots=True)
class Tile:
    """A register tile: `blocks` channel blocks x `rows` x `columns` pixels, one vector accumulator each."""

    blocks: int
    rows: int
    columns: int

    @property
    def accumulators(self) -> int:
        """Vector registers that hold partial sums."""
        return self.blocks * self.rows * self.columns


def divisors(number: int) -> list[int]:
    """Divisors of a positive number, ascending.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def choose_tile(blocks: int, rows: int, columns: int, cpu: Cpu) -> Tile:
    """The tile with the least modelled time per multiply-add among those that divide the output and fit the registers.

    A reduction step of a tile with b blocks and p pixels does b*p multiply-adds (two a cycle) on b weight vectors and
    p broadcast inputs (two loads a cycle), keeping b weights and one input in registers beside the accumulators. It
    cannot be quicker than the latency of a multiply-add, nor than the addressing of its b weight streams. Ties go to
    fewer blocks (fewer streams), then to more accumulators. (1, 1, 1) always fits.

    Where a processor holds inputs (NEON), all p are in registers, since LLVM loads several steps' at once, and a cycle
    has one load. (64 channels, 3 x 3, cycles a multiply-add by llvm-mca for Neoverse N1 and V2: 3 x 7 0.64 and
    0.28, 2 x 8 0.75 and 0.30, 1 x 14 1.04 and 0.37; with a column more than fits, values are spilt.)
    """
    best: tuple[tuple[float, int, int], Tile] | None = None
    for block in (divisor for divisor in divisors(blocks) if divisor <= _MOST_BLOCKS):
        for column in divisors(columns):
            for row in divisors(rows) if column == columns else (1,):
                tile = Tile(block, row, column)
                if not _fits(tile, cpu):
                    continue
                key = (round(_cycles(tile, cpu) / tile.accumulators, 2), block, -tile.accumulators)
                if best is None or key < best[0]:
                    best = key, tile
    return best[1] if best else Tile(1, 1, 1)


def choose_covering_tile(blocks: int, rows: int, columns: int, cpu: Cpu, streams: int = 1) -> Tile:
    """As `choose_tile`, of the tiles that cover the output where the last ones may overlap those before (see `Cover`),
    so that extents without divisors do not force a poor shape; what is computed twice counts. Ties go to as many
    streams of weights as are asked for, or as near as there are."""
    best: tuple[tuple[float, int, int], Tile] | None = None
    for block in _widths(blocks, _MOST_BLOCKS):
        for column in _widths(columns, cpu.registers):
            for row in _widths(rows, cpu.registers) if column == columns else (1,):
                tile = Tile(block, row, column)
                if not _fits(tile, cpu):
                    continue
                count = -(-blocks // block) * -(-rows // row) * -(-columns // column)
                share = _cycles(tile, cpu) * count / (blocks * rows * columns)
                key = (round(share, 2), abs(block - streams), -tile.accumulators)
                if best is None or key < best[0]:
                    best = key, tile
    return best[1] if best else Tile(1, 1, 1)


def _widths(extent: int, most: int) -> list[int]:
    """The widths of even covers."""
    return sorted({Cover.of(extent, width).width for width in range(1, min(extent, most) + 1)})


def _fits(tile: Tile, cpu: Cpu) -> bool:
    """Whether all that a reduction step keeps finds a register."""
    inputs = tile.rows * tile.columns if cpu.holds_inputs else 1
    return tile.accumulators + tile.blocks + inputs <= cpu.registers


def _cycles(tile: Tile, cpu: Cpu) -> float:
    """Modelled cycles of one reduction step."""
    loads = tile.rows * tile.columns + tile.blocks
    return max(
        tile.accumulators / 2,
        loads if cpu.holds_inputs else loads / 2,
        cpu.latency_accumulators / 2,
        tile.blocks + 2,
    )


def _round_up(extent: int, least: int, most: int) -> int:
    """The least number not below the extent that is at most `most` or has a divisor in [least, most]."""
    if extent <= most:
        return extent
    return min(-(-extent // width) * width for width in range(least, most + 1))


def choose_vector_tile(blocks: int, rows: int, steps: int, cpu: Cpu) -> tuple[Tile, int, int]:
    """How to tile a matrix product, whose rows stand in the place of columns of pixels.

    A single row reuses no weight, so the tile is as many blocks as fit; where they are too few to hide the latency of
    a multiply-add, several partial sums of each do it.

    Args:
        blocks: output blocks.
        rows: of the matrix.
        steps: neighbouring inputs that partial sums can share out.
        cpu: the processor.

    Returns:
        The tile, the blocks to compute (a multiple of the tile's), and the partial sums of each output, a divisor of
        the steps.
    """
    most = min(_MOST_BLOCKS, (cpu.registers - 1) // 2)
    computed = _round_up(blocks, most // 2, most) if rows == 1 else blocks
    tile = choose_tile(computed, 1, rows, cpu)
    partial = 1
    for candidate in divisors(steps):
        enough = partial * tile.accumulators >= cpu.latency_accumulators
        if not enough and candidate * tile.accumulators + tile.blocks + 1 <= cpu.registers:
            partial = candidate
    return tile, computed, partial
