import math

import pytest

from backends.tvm.kernels.loops import Cover
from backends.tvm.kernels.tiles import Tile, choose_covering_tile, choose_tile, choose_vector_tile
from backends.tvm.target import Cpu, cpu_for

AVX512 = Cpu("skylake-avx512", lanes=16, registers=32, latency_accumulators=9.2)
AVX2 = Cpu("haswell", lanes=8, registers=16, latency_accumulators=12.0)


def test_target_decides_vectors_and_registers():
    assert (cpu_for("skylake-avx512").lanes, cpu_for("skylake-avx512").registers) == (16, 32)
    assert (cpu_for("haswell").lanes, cpu_for("haswell").registers) == (8, 16)
    assert cpu_for("x86-64").lanes == 4


def test_tile_of_the_reference_convolution():
    # 64 -> 64 channels at 16 x 16: two blocks by eight pixels measured fastest (253 GFLOP/s; 1 x 16 gives 235)
    assert choose_tile(4, 16, 16, AVX512) == Tile(2, 1, 8)


def test_avx2_needs_twelve_accumulators():
    assert choose_tile(6, 16, 16, AVX2) == Tile(3, 1, 4)


@pytest.mark.parametrize("cpu", [AVX512, AVX2], ids=lambda cpu: cpu.mcpu)
@pytest.mark.parametrize("extents", [(1, 1, 1), (4, 4, 4), (3, 7, 7), (7, 13, 13), (19, 1, 1), (2, 1, 31), (80, 2, 2)])
def test_tile_divides_the_output_and_fits_the_registers(cpu, extents):
    tile = choose_tile(*extents, cpu)
    assert [extent % part for extent, part in zip(extents, (tile.blocks, tile.rows, tile.columns), strict=True)] == [
        0,
        0,
        0,
    ]
    assert tile.accumulators + tile.blocks + 1 <= cpu.registers


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (2, 2)])
def test_small_feature_maps_still_fill_the_registers(size):
    assert choose_tile(4, *size, AVX512).accumulators >= 8


def test_covering_tile_is_the_dividing_one_where_that_is_good():
    assert choose_covering_tile(4, 16, 16, AVX512) == Tile(2, 1, 8)
    assert choose_covering_tile(6, 16, 16, AVX2) == Tile(3, 1, 4)


@pytest.mark.parametrize("cpu", [AVX512, AVX2], ids=lambda cpu: cpu.mcpu)
@pytest.mark.parametrize("columns", [*range(1, 60), 111, 113, 127, 257])
@pytest.mark.parametrize("blocks", [1, 2, 5, 7, 19])
def test_covering_tile_fits_the_registers_and_wastes_little(cpu, columns, blocks):
    tile = choose_covering_tile(blocks, columns, columns, cpu)
    assert tile.accumulators + tile.blocks + 1 <= cpu.registers
    covers = [Cover(extent, part) for extent, part in ((blocks, tile.blocks), (columns, tile.columns))]
    computed = math.prod(cover.count * cover.width for cover in covers)
    assert computed <= 1.3 * blocks * columns
    if columns > 4:
        assert tile.accumulators >= 8


@pytest.mark.parametrize("cpu", [AVX512, AVX2], ids=lambda cpu: cpu.mcpu)
@pytest.mark.parametrize(("blocks", "rows", "steps"), [(19, 1, 16), (1, 1, 16), (1, 1, 1), (63, 1, 8), (2, 64, 16)])
def test_vector_tile_covers_the_outputs_and_hides_latency(cpu, blocks, rows, steps):
    tile, computed, partial = choose_vector_tile(blocks, rows, steps, cpu)
    assert blocks <= computed <= blocks * 1.2
    assert (computed % tile.blocks, steps % partial) == (0, 0)
    accumulators = tile.accumulators * partial
    assert accumulators + tile.blocks + 1 <= cpu.registers
    assert accumulators >= 6 or partial == steps
