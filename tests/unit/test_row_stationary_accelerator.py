"""Row stationary arrays: the search, what costs what, what is refused."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from automl.testing.accelerators import AcceleratorConformance
from backends.accelerators.catalogue import load
from backends.accelerators.row_stationary import RowStationary
from backends.accelerators.workloads import Workload, Workloads
from search_spaces.errors import InputError

SMALL: dict[str, Any] = {
    "class": "row_stationary",
    "title": "a small array of several bits",
    "source": "this test",
    "clock": "1 GHz",
    "static_power": "1 mW",
    "weight_bits": [4, 8, 16],
    "activation_bits": [8, 16],
    "accumulator_bits": 24,
    "activation_density": 0.5,
    "array": {"rows": 5, "columns": 6},
    "pass_rows": 4,
    "psum_share": 0.7,
    "memories": {
        "dram": {"bandwidth": "16 bit/cycle"},
        "global_buffer": {
            "size": "16 KiB",
            "read_bandwidth": "64 bit/cycle",
            "write_bandwidth": "32 bit/cycle",
            "read_energy": "1 pJ/bit",
            "write_energy": "3 pJ/bit",
        },
        "filter_spad": {"size": "64 B"},
        "ifmap_spad": {"size": "8 B"},
        "psum_spad": {"size": "24 B"},
    },
}


class TestSmall(AcceleratorConformance):
    """Beside the shipped one, which is tried with all others that are shipped."""

    def make(self) -> RowStationary:
        return made()


def made(**changes: Any) -> RowStationary:
    accelerator = load(SMALL | changes)
    assert isinstance(accelerator, RowStationary)
    return accelerator


def eyeriss() -> RowStationary:
    accelerator = load("eyeriss_v1")
    assert isinstance(accelerator, RowStationary)
    return accelerator


def conv(inputs: int, outputs: int, size: int, kernel: int, **others: Any) -> Workload:
    sizes = {
        "in_channels": inputs,
        "out_channels": outputs,
        "kernel_height": kernel,
        "kernel_width": kernel,
        "in_height": size,
        "in_width": size,
        "out_height": size,
        "out_width": size,
    }
    return Workload(**{**sizes, "weight_bits": 16, "activation_bits": 16, **others})


LAYERS = [
    conv(3, 64, 56, 3),
    conv(64, 96, 28, 3),
    conv(256, 384, 13, 3, batch=4),
    conv(96, 40, 27, 5),
    conv(300, 7, 9, 1),
]


def every_mapping(work: Workload) -> Iterator[tuple[int, int]]:
    """Cycles of Eyeriss' array and bits read and written at its global buffer, under every r and q there is."""
    buffer, share = 102400 * 8, 0.91125
    kernel, size = work.kernel_height, work.out_height
    for rows in (13, 14):
        rows = min(rows, size)
        sets = (12 // kernel) * (14 // rows)
        lines, wide = rows + kernel - 1, size + kernel - 1
        fitting = int(buffer * (1 - share) / (2 * lines * wide * 16))
        outputs = min(int(buffer * share / (rows * size * 16)), work.out_channels)
        for r, q in itertools.product(range(1, sets + 1), range(1, 12 // kernel + 1)):
            if fitting < work.in_channels and q * r > fitting:
                continue
            t = min(sets // r, outputs)
            filters = min(min(224 // (q * kernel), 24) * t, outputs)
            blocks = math.ceil(size / rows)
            turns = math.ceil(math.ceil(work.in_channels / r) / q)
            cycles = work.batch * blocks * size * math.ceil(work.out_channels / t)
            cycles *= math.ceil(work.in_channels / r) * kernel + turns
            sums = 2 * math.ceil(work.in_channels / (q * r)) * work.out_channels * size * size
            inputs = math.ceil(work.out_channels / filters) * work.in_channels
            inputs *= wide * (wide + (blocks - 1) * (kernel - 1))
            yield cycles, 16 * work.batch * (sums + inputs)


@pytest.mark.parametrize("work", LAYERS, ids=str)
def test_no_mapping_at_all_is_better_than_those_searched(work: Workload) -> None:
    """The search leaves numbers out; here all of them are gone through, in plain integers."""
    usage = eyeriss().run(Workloads.of([work]))
    cycles, bits = zip(*every_mapping(work), strict=True)
    assert usage.compute_cycles[0] == min(cycles)
    assert usage.traffic["global_buffer"].bits[0] == min(bits)


def test_the_mapping_fits() -> None:
    accelerator = eyeriss()
    works = Workloads.of(LAYERS)
    mapping = accelerator.mapping(works)
    kernel = works.kernel_height
    assert (np.minimum(mapping.e, 14) * kernel * mapping.r * mapping.t <= 168).all()
    assert (mapping.p * mapping.q * kernel <= 224).all()
    assert (mapping.q * kernel <= 12).all()
    assert (mapping.p <= 24).all()
    assert (mapping.m * mapping.n * mapping.e * works.out_width * 2 <= 102400 * 0.91125).all()
    assert (mapping.active <= 168).all()
    assert (accelerator.attained(works) >= accelerator.run(works).cycles * (1 - 1e-12)).all()


def test_a_layer_by_hand() -> None:
    """Two channels in and out of 4 x 4 pixels, kernel 3: one set of 3 x 4 elements a row of sets, 4 of them with 3 more
    side by side in 12 x 14: r = t = 2, 4 pixels a row, 3 products and a sum each; all channels at once."""
    usage = eyeriss().run(Workloads.of([conv(2, 2, 4, 3)]))
    assert usage.compute_cycles[0] == 4 * (3 + 1)
    sums, inputs = 2 * 4 * 4 * 16, 2 * 6 * 6 * 16
    buffer = usage.traffic["global_buffer"]
    assert (buffer.read_bits[0], buffer.written_bits[0]) == (sums + inputs, sums)
    weights, outputs = 2 * 2 * 9 * 16, 2 * 4 * 4 * min(16, 0.425 * 64 / 3)
    assert usage.traffic["dram"].read_bits[0] == weights + 2 * 4 * 4 * 16
    assert usage.traffic["dram"].written_bits[0] == pytest.approx(outputs)


def test_zeros_save_energy_and_memory_traffic_but_no_time() -> None:
    dense, sparse = (eyeriss().run(Workloads.of([conv(64, 64, 56, 3, activation_density=d)])) for d in (1.0, 0.25))
    assert dense.cycles[0] == sparse.cycles[0]
    assert sparse.energy_j["compute"][0] == dense.energy_j["compute"][0] / 4
    assert sparse.energy_j["filter_spad"][0] == dense.energy_j["filter_spad"][0] / 4
    assert sparse.energy_j["ifmap_spad"][0] == dense.energy_j["ifmap_spad"][0]
    assert sparse.traffic["dram"].read_bits[0] < 0.8 * dense.traffic["dram"].read_bits[0]


def test_fewer_bits_than_the_chip_has_save_nothing() -> None:
    accelerator = eyeriss()
    works = Workloads.of([conv(64, 64, 28, 3), conv(64, 64, 28, 3, weight_bits=2, activation_bits=4)])
    usage = accelerator.run(accelerator.fitted(works))
    assert usage.cycles[0] == usage.cycles[1]
    assert usage.total_energy_j[0] == usage.total_energy_j[1]


def test_a_channel_of_its_own_leaves_most_of_the_array_idle() -> None:
    """A depthwise convolution has one set at work: r = t = 1."""
    accelerator = eyeriss()
    depthwise = Workloads.of([conv(1, 1, 14, 3, groups=64)])
    assert accelerator.mapping(depthwise).active[0] == 3 * 14
    assert accelerator.run(depthwise).utilisation[0] < 0.25


def test_linear_layers_wait_for_their_weights() -> None:
    """4096 x 4096 numbers of 16 bits at 480 MB/s; a batch of 4 takes as long, but for its inputs and outputs, and so do
    not four steps of a recurrent layer."""
    linear = {"in_channels": 4096, "out_channels": 4096, "weight_bits": 16, "activation_bits": 16}
    rows = [Workload(**linear), Workload(**linear, batch=4), Workload(**linear, steps=4)]
    usage = eyeriss().run(Workloads.of(rows))
    assert usage.limits() == ["dram"] * 3
    seconds = usage.cycles / 200e6
    assert seconds[0] == pytest.approx(4096 * 4096 * 2 / 480e6, rel=0.001)
    assert seconds[1:] / seconds[0] == pytest.approx([1, 4], rel=0.003)


def test_weights_that_are_computed_are_read_for_each_image() -> None:
    product = conv(64, 200, 1, 1, batch=3, product=1)
    usage = eyeriss().run(Workloads.of([product, conv(64, 200, 1, 1, batch=3)]))
    assert np.subtract(*usage.traffic["dram"].read_bits) == 2 * 64 * 200 * 16


def test_kernels_that_are_too_large_are_cut() -> None:
    """13 rows in an array of 12: two parts of 7, each a channel of its own."""
    accelerator = eyeriss()
    small, large = Workloads.of([conv(8, 8, 28, 12)]), Workloads.of([conv(8, 8, 28, 13)])
    assert accelerator.refusals(large) == [None]
    assert accelerator.mapping(large).active[0] == 7 * 14
    assert accelerator.run(large).compute_cycles[0] > 1.9 * accelerator.run(small).compute_cycles[0]


def test_more_of_everything_is_faster() -> None:
    """More elements where the array is the limit, a faster or larger buffer where it is."""
    rows = Workloads.of([conv(256, 384, 13, 3, batch=4), conv(128, 128, 112, 3)])
    memories = {**SMALL["memories"], "dram": {}, "global_buffer": {"size": "100 KiB", "bandwidth": "16 B/cycle"}}
    base = {"array": {"rows": 12, "columns": 14}, "pass_rows": 13, "psum_share": 0.91125, "memories": memories}
    before = made(**base).run(rows)
    elements = made(**base | {"array": {"rows": 24, "columns": 28}}).run(rows)
    faster, larger = (
        made(**base | {"memories": {**memories, "global_buffer": {**memories["global_buffer"], **change}}}).run(rows)
        for change in ({"bandwidth": "32 B/cycle"}, {"size": "400 KiB"})
    )
    assert elements.compute_cycles[0] < 0.6 * before.compute_cycles[0]
    assert before.limits()[1] == "global_buffer"
    assert faster.cycles[1] < 0.6 * before.cycles[1]
    assert larger.cycles[1] < 0.6 * before.cycles[1]


@pytest.mark.parametrize(
    "work",
    [
        # fewest bits are read and written under another mapping than takes fewest cycles: writing is slower
        Workload(in_channels=64, out_channels=33, in_height=56, out_height=56, product=1),
        # whole rows of the kernel leave the filters of fewer outputs in an element than its parts do
        conv(2, 48, 28, 2, kernel_width=11, dilation_width=2, in_height=29, in_width=21, out_width=1),
    ],
)
def test_a_larger_input_pad_slows_no_layer(work: Workload) -> None:
    """Layers that an earlier search slowed by 6 and 22 %."""
    works = Workloads.of([work]).replace(weight_bits=16, activation_bits=16)
    cycles = [
        made(memories={**SMALL["memories"], "ifmap_spad": {"size": f"{size} B"}}).run(works).cycles[0]
        for size in (8, 10, 16, 24, 64)
    ]
    assert cycles == sorted(cycles, reverse=True)


def test_what_fits_no_buffer_is_refused() -> None:
    memories = {**SMALL["memories"], "global_buffer": {"size": "1 KiB"}}
    works = Workloads.of([conv(1, 1, 1, 1), conv(1, 1, 64, 3)])
    assert made(memories=memories).refusals(works) == [
        None,
        "the rows that one pass reads do not fit the global buffer or a scratch pad",
    ]


def bad(level: str, **section: str) -> dict[str, Any]:
    return {"memories": {**SMALL["memories"], level: section}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"array": {"rows": 0, "columns": 6}}, "array.rows"),
        ({"array": {"rows": 5}}, "columns"),
        ({"pass_rows": 0}, "pass_rows"),
        ({"psum_share": 1.0}, "psum_share"),
        (bad("ifmap_spad", size="1 B"), "'ifmap_spad' holds not even one number of 16 bits"),
        (bad("psum_spad", size="16 bit"), "'psum_spad' holds not even one number of 24 bits"),
        (bad("filter_spad"), "'filter_spad' needs a size"),
        ({"memories": {"dram": {}}}, "needs the memory level 'global_buffer'"),
    ],
)
def test_bad_descriptions_are_told_in_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as error:
        made(**changes)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
