"""The zoo's supernets and their spaces against Once-for-All's own figures and code, and against what torch counts."""

from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from automl.compression.elastic import Elastic
from automl.compression.pipeline import CompressionOptions, Compressor
from automl.config import Config, load_config
from automl.models import build_model
from automl.once_for_all.config import SupernetConfig
from search_spaces.building import SpaceOptions, build_space
from search_spaces.capture import PrunableNetwork
from search_spaces.depth import rows_of_blocks
from search_spaces.policy import CompressionPolicy
from search_spaces.space import SearchSpace

CONFIGS = Path(__file__).parents[2] / "configs"
PUBLISHED = (9**2 + 9**3 + 9**4) ** 5
"""Two to four blocks in five stages, three kernels and three expansions each (Cai et al. 2020, section 3.1)."""

# MACs and parameters of the largest networks in OFA's own code at 224 pixels, as torch counts them: OFAMobileNetV3 with
# kernel 7, expansion 6 and depth 4, and OFAResNets with depth 2 and expansion 0.35
LARGEST = [
    ("ofa_mobilenet_v3", {}, 566_170_656, 7_664_760),
    ("ofa_mobilenet_v3", {"width": 1.2}, 843_101_040, 10_701_632),
    ("ofa_resnet50", {}, 7_491_643_904, 48_105_992),
]
# of that code's smallest MobileNetV3: kernel 3, expansion 3, depth 2
SMALLEST_MACS = 121_278_672
# two 1x1 layers in each block with squeeze-and-excitation keep the squeezed channels of expansion 6
# (channels of the block, squeezed at expansion 6, at expansion 3)
SQUEEZED = ((72, 40, 24), (120, 64, 32), (240, 120, 64), (336, 168, 88), (336, 168, 88), (480, 240, 120))


@cache
def supernet(name: str, size: int, resolution: int | None = None) -> PrunableNetwork:
    """Of the zoo, in eval mode, also at another resolution."""
    model = build_model(name, {}, classes=10, input_shape=(3, size, size))
    others = [] if resolution is None else [(resolution, resolution)]
    return PrunableNetwork(model, torch.zeros(1, 3, size, size), resolutions=others)


def published_space(network: PrunableNetwork, config: str, **options: Any) -> SearchSpace:
    """The space of a config that comes along, with some of its options replaced."""
    kind = SupernetConfig if config.endswith("_supernet") else Config
    section = load_config(CONFIGS / f"{config}.yaml", kind=kind).space.model_dump()
    return build_space(network.graph, SpaceOptions(**{**section, **options}))


@pytest.mark.parametrize(("name", "args", "macs", "params"), LARGEST)
def test_the_largest_network_is_the_published_one(name: str, args: dict[str, Any], macs: int, params: int) -> None:
    with torch.device("meta"):
        model = build_model(name, args, classes=1000, input_shape=(3, 224, 224))
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, 224, 224))
    assert counter.get_total_flops() // 2 == macs
    assert sum(parameter.numel() for parameter in model.parameters()) == params


@pytest.mark.parametrize(
    ("name", "size", "macs", "params"),
    [
        ("ofa_small", 16, 3_989_760, 111_226),
        ("ofa_small", 32, 15_955_200, 111_226),
        ("ofa_resnet_small", 16, 10_203_776, 272_474),
    ],
)
def test_small_ones_stay_as_they_are(name: str, size: int, macs: int, params: int) -> None:
    with torch.device("meta"):
        model = build_model(name, {}, classes=10, input_shape=(3, size, size))
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, size, size))
    assert counter.get_total_flops() // 2 == macs
    assert sum(parameter.numel() for parameter in model.parameters()) == params


def test_the_space_has_as_many_sub_networks_as_published() -> None:
    """Of a stage the first block stays and the others make a row; the block of the stem has no choice."""
    network = supernet("ofa_mobilenet_v3", 32)
    space = published_space(network, "ofa_mobilenet_v3_imagenet", resolution=[])
    assert space.size == PUBLISHED == 21_758_655_492_572_485_851
    assert [len(row) for row in rows_of_blocks(network.graph)] == [1, 3, 3, 3, 3, 3]


def test_each_resolution_has_as_many_sub_networks() -> None:
    network = supernet("ofa_small", 16, 12)
    alone = published_space(network, "glyphs_supernet", resolution=[]).size
    assert alone == (6 + 6**2 + 6**3 + 6**4) ** 3
    assert published_space(network, "glyphs_supernet", resolution=[12]).size == 2 * alone


@pytest.mark.slow
def test_the_smallest_sub_network_is_the_published_one_but_for_what_is_squeezed() -> None:
    model = build_model("ofa_mobilenet_v3", {}, classes=1000, input_shape=(3, 224, 224))
    network = PrunableNetwork(model, torch.zeros(1, 3, 224, 224))
    space = published_space(network, "ofa_mobilenet_v3_imagenet", resolution=[])
    more = sum(2 * channels * (largest - least) for channels, largest, least in SQUEEZED)
    assert network.graph.apply(space.cheapest()).macs == SMALLEST_MACS + more


@pytest.mark.parametrize(
    "options",
    [
        {"channels": False, "kernel": [3]},
        {"keep": [0.5], "protect": ["stem*", "*.project*", "head*"]},
    ],
)
def test_size_counts_distinct_policies(options: dict[str, Any]) -> None:
    """By enumeration of all points: two choices for each block of a stage, the second of which may go."""
    model = build_model("ofa_small", {"depth": 2}, classes=10, input_shape=(3, 16, 16))
    network = PrunableNetwork(model, torch.zeros(1, 3, 16, 16))
    space = build_space(network.graph, SpaceOptions(depth=0, **options))
    policies = {space.decode(np.array(point)).digest for point in product(*(range(count) for count in space.counts))}
    assert space.size == len(policies) == (2 + 2**2) ** 3


def policies(space: SearchSpace, count: int) -> Iterator[CompressionPolicy]:
    generator = np.random.default_rng(0)
    return (space.decode(space.sample(generator)) for _ in range(count))


@pytest.mark.parametrize(
    ("name", "size", "config", "resolution", "count"),
    [
        ("ofa_small", 16, "glyphs_supernet", 12, 15),
        pytest.param("ofa_small", 16, "glyphs_supernet", 12, 100, marks=pytest.mark.slow),
        pytest.param("ofa_mobilenet_v3", 32, "ofa_mobilenet_v3_imagenet", 24, 100, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_cut_out_sub_networks_are_as_small_as_arithmetic_says(
    name: str, size: int, config: str, resolution: int, count: int
) -> None:
    network = supernet(name, size, resolution)
    space = published_space(network, config, resolution=[resolution])
    order = {group.name: np.random.default_rng(1).permutation(group.width) for group in network.graph.groups}
    compressor = Compressor(network, None, CompressionOptions(reconstruct=False), elastic=Elastic(order, {}))
    found = set()
    for policy in policies(space, count):
        module, graph = compressor.apply(policy), network.graph.apply(policy)
        with FlopCounterMode(display=False) as counter:
            module(torch.zeros(1, *graph.input_shape))
        assert counter.get_total_flops() == 2 * graph.macs
        assert sum(parameter.numel() for parameter in module.parameters()) == graph.params
        found.add((graph.macs, graph.params))
    assert len(found) > 0.9 * count
