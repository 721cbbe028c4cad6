import math

import pytest

from backends.tvm.kernels.loops import Cover
from backends.tvm.kernels.tiles import Tile, choose_covering_tile, choose_tile, choose_vector_tile
from backends.tvm.target import Cpu

AVX512 = Cpu("skylake-avx512", lanes=16, registers=32, latency_accumulators=9.2)
AVX2 = Cpu("haswell", lanes=8, registers=16, latency_accumulators=12.0)
NEON = Cpu("generic", lanes=4, registers=32, latency_accumulators=12.0, holds_inputs=True)
ALL = [AVX512, AVX2, NEON]


def live(tile, cpu):
    """Registers that a reduction step of the tile needs."""
    return tile.accumulators + tile.blocks + (tile.rows * tile.columns if cpu.holds_inputs else 1)


def test_tile_of_the_reference_convolution():
    # 64 -> 64 channels at 16 x 16: two blocks by eight pixels measured fastest (253 GFLOP/s; 1 x 16 gives 235)
    assert choose_tile(4, 16, 16, AVX512) == Tile(2, 1, 8)


def test_avx2_needs_twelve_accumulators():
    assert choose_tile(6, 16, 16, AVX2) == Tile(3, 1, 4)


@pytest.mark.parametrize("extents", [(16, 16, 16), (4, 32, 32), (48, 14, 14), (80, 7, 7), (64, 2, 2)])
def test_neon_loads_little_for_a_multiply_add(extents):
    # a long row of one block, which suits processors with broadcasts, has as many loads as multiply-adds
    tile = choose_covering_tile(*extents, NEON)
    assert tile.blocks + tile.rows * tile.columns <= 0.51 * tile.accumulators


@pytest.mark.parametrize("cpu", ALL, ids=lambda cpu: cpu.mcpu)
@pytest.mark.parametrize("extents", [(1, 1, 1), (4, 4, 4), (3, 7, 7), (7, 13, 13), (19, 1, 1), (2, 1, 31), (80, 2, 2)])
def test_tile_divides_the_output_and_fits_the_registers(cpu, extents):
    tile = choose_tile(*extents, cpu)
    assert [extent % part for extent, part in zip(extents, (tile.blocks, tile.rows, tile.columns), strict=True)] == [
        0,
        0,
        0,
    ]
    assert live(tile, cpu) <= cpu.registers


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (2, 2)])
def test_small_feature_maps_still_fill_the_registers(size):
    assert choose_tile(4, *size, AVX512).accumulators >= 8


def test_covering_tile_is_the_dividing_one_where_that_is_good():
    assert choose_covering_tile(4, 16, 16, AVX512) == Tile(2, 1, 8)
    assert choose_covering_tile(6, 16, 16, AVX2) == Tile(3, 1, 4)


def test_as_many_streams_of_weights_as_are_asked_for_where_that_costs_nothing():
    assert choose_covering_tile(16, 8, 8, AVX512) == Tile(2, 1, 8)
    assert choose_covering_tile(16, 8, 8, AVX512, streams=4) == Tile(4, 1, 4)
    assert choose_covering_tile(1, 32, 32, AVX512, streams=4) == choose_covering_tile(1, 32, 32, AVX512)


@pytest.mark.parametrize("cpu", ALL, ids=lambda cpu: cpu.mcpu)
@pytest.mark.parametrize("columns", [*range(1, 60), 111, 113, 127, 257])
@pytest.mark.parametrize("blocks", [1, 2, 5, 7, 19])
def test_covering_tile_fits_the_registers_and_wastes_little(cpu, columns, blocks):
    tile = choose_covering_tile(blocks, columns, columns, cpu)
    assert live(tile, cpu) <= cpu.registers
    covers = [Cover(extent, part) for extent, part in ((blocks, tile.blocks), (columns, tile.columns))]
    computed = math.prod(cover.count * cover.width for cover in covers)
    assert computed <= 1.3 * blocks * columns
    if columns > 4:
        # of a single block, NEON's loads take as long as the latency
        assert tile.accumulators >= (5 if cpu.holds_inputs and blocks == 1 else 8)


@pytest.mark.parametrize("cpu", ALL, ids=lambda cpu: cpu.mcpu)
@pytest.mark.parametrize(("blocks", "rows", "steps"), [(19, 1, 16), (1, 1, 16), (1, 1, 1), (63, 1, 8), (2, 64, 16)])
def test_vector_tile_covers_the_outputs_and_hides_latency(cpu, blocks, rows, steps):
    tile, computed, partial = choose_vector_tile(blocks, rows, steps, cpu)
    assert blocks <= computed <= blocks * 1.2
    assert (computed % tile.blocks, steps % partial) == (0, 0)
    accumulators = tile.accumulators * partial
    assert accumulators + tile.blocks + 1 <= cpu.registers
    assert accumulators >= 6 or partial == steps
