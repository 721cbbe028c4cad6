"""Mixtures of sub-networks: with every share 0 or 1 they are the sub-network itself."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from automl.compression import CompressionOptions, Compressor
from automl.compression.elastic import Elastic
from automl.compression.running import channels_last
from automl.models import build_model
from automl.supernet.network import Supernet
from automl.supernet.relaxation import Relaxation
from search_spaces.building import SpaceOptions, build_space
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError
from search_spaces.resizing import resize
from search_spaces.space import Point, SearchSpace

SHAPE = (3, 16, 16)
IMAGES = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0))
NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any], list[int]]] = {
    "resnet20": ({"shortcut": "B"}, {"kernel": [1], "depth": 0}, [12]),
    "mobilenet_v2": ({"width": 0.25}, {"kernel": [1], "depth": 1}, []),
    "densenet40": ({}, {}, []),
    "shufflenet_v2": ({}, {}, []),
    "lenet5": ({}, {"kernel": [3]}, []),
}
"""Arguments, options of the space, resolutions."""


def captured(name: str) -> tuple[PrunableNetwork, SearchSpace, Elastic]:
    """With an order and transforms that are no one's own."""
    args, options, sizes = NETWORKS[name]
    model = build_model(name, args, classes=10, input_shape=SHAPE, seed=0)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator)
            nn.init.normal_(module.bias, std=0.2, generator=generator)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    network = PrunableNetwork(model, IMAGES[:1], resolutions=[(size, size) for size in sizes])
    space = build_space(network.graph, SpaceOptions(resolution=sizes, **options))
    shuffle = np.random.default_rng(1)
    supernet = Supernet(network, space, Elastic({g.name: shuffle.permutation(g.width) for g in network.graph.groups}))
    with torch.no_grad():
        for matrix in supernet.transforms.values():
            matrix += 0.2 * torch.randn(matrix.shape, generator=generator)
    return network, space, supernet.elastic


def one_hot(space: SearchSpace, point: Point) -> list[Tensor]:
    return [torch.eye(count)[choice] for count, choice in zip(space.counts.tolist(), point.tolist(), strict=True)]


@pytest.mark.parametrize("name", NETWORKS)
def test_with_shares_of_0_and_1_it_is_the_sub_network(name: str) -> None:
    network, space, elastic = captured(name)
    compressor = Compressor(network, None, CompressionOptions(reconstruct=False), elastic=elastic)
    relaxation = Relaxation(compressor, space)
    supernet = Supernet(network, space, elastic).train()
    generator = np.random.default_rng(0)
    for point in (space.least, *(space.sample(generator) for _ in range(3))):
        policy = space.decode(point)
        with torch.no_grad():
            found = relaxation(IMAGES, one_hot(space, point))
            cut_out = compressor.apply(policy)
            for module in cut_out.modules():
                if isinstance(module, _BatchNorm):
                    module.running_mean = module.running_var = None
            images = channels_last(resize(IMAGES, policy.resolution))
            for wanted in (cut_out(images), supernet(IMAGES, policy)):
                assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-4


def test_every_decision_has_a_gradient_and_no_weight_changes() -> None:
    network, space, elastic = captured("resnet20")
    compressor = Compressor(network, None, CompressionOptions(reconstruct=False), elastic=elastic)
    relaxation = Relaxation(compressor, space)
    even = [torch.full((count,), 1.0 / count) for count in space.counts.tolist()]
    shares = [each.requires_grad_() for each in even]
    before = relaxation(IMAGES, shares)
    before.square().sum().backward()  # type: ignore[no-untyped-call]
    for decision, share in zip(space.decisions, shares, strict=True):
        assert share.grad is not None
        assert (share.grad != 0.0).any(), decision.name
    torch.testing.assert_close(relaxation(IMAGES, shares), before, rtol=0.0, atol=0.0)


def test_a_network_of_a_fixed_batch_is_refused() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).mean((2, 3)).reshape(2, 4))  # type: ignore[no-any-return]

    network = PrunableNetwork(Fixed(), IMAGES[:2])
    compressor = Compressor(network, None, CompressionOptions(reconstruct=False))
    with pytest.raises(InputError, match="this one fixes its batch"):
        Relaxation(compressor, build_space(network.graph, SpaceOptions()))
