"""Distributions over choices trained by gradient: on networks where it is known what they should come to."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from automl.compression import CompressionOptions, Compressor
from automl.costs.expected import expected_costs
from automl.searchers.points.gradient import GradientOptions
from automl.supernet.architecture import trained_logits
from automl.supernet.relaxation import Relaxation
from backends.layer_prices import FloatArray
from backends.point_prices import PointPrices
from search_spaces.building import SpaceOptions, build_space
from search_spaces.capture import PrunableNetwork
from search_spaces.objective import Constraint
from search_spaces.space import SearchSpace

IMAGES = torch.randn(96, 2, 8, 8, generator=torch.Generator().manual_seed(1))


class Branches(nn.Module):
    """Two residual blocks, of which one can do with a quarter of its units."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.idle, self.busy = (
            nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)) for _ in range(2)
        )
        self.fc = nn.Linear(64, 3)
        with torch.no_grad():
            for block, share in ((self.idle, 2), (self.busy, 8)):
                block[0].weight[share:] *= 0.01  # type: ignore[index]
                block[0].bias[share:] *= 0.01  # type: ignore[index]
                block[2].weight *= 6.0  # type: ignore[operator]
            self.fc.weight *= 8.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.idle(x))
        x = torch.relu(x + self.busy(x))
        return self.fc(F.adaptive_avg_pool2d(x, 4).flatten(1))  # type: ignore[no-any-return]


def trained(resolutions: tuple[int, ...] = (), **options: float | str) -> tuple[SearchSpace, list[FloatArray]]:
    torch.manual_seed(0)
    network = PrunableNetwork(Branches().eval(), IMAGES[:1], resolutions=[(size, size) for size in resolutions])
    space = build_space(network.graph, SpaceOptions(resolution=resolutions, lower_bound=0.25, protect=["stem"]))
    compressor = Compressor(network, None, CompressionOptions(reconstruct=False))
    costs = expected_costs(PointPrices(space), [Constraint("macs", 0.7 * network.graph.macs)], seed=0)
    with torch.no_grad():
        answers = network.prune({})(IMAGES)
    given = GradientOptions(**{"steps": 60, "batch": 32, "lr": 0.2, **options})  # type: ignore[arg-type]
    return space, trained_logits(Relaxation(compressor, space), costs, IMAGES, answers, given, seed=0)


@pytest.mark.parametrize("relaxation", ["gumbel", "softmax"])
def test_what_does_nothing_goes_and_what_matters_stays(relaxation: str) -> None:
    space, logits = trained(relaxation=relaxation)
    chosen = {each.targets[0]: int(found.argmax()) for each, found in zip(space.decisions, logits, strict=True)}
    assert chosen["idle.0"] < 2
    assert chosen["busy.0"] == 3


def test_the_same_seed_trains_the_same_and_without_steps_nothing_is_known() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    (_, first), (_, second) = trained((6,), steps=8), trained((6,), steps=8)
    assert all((one == other).all() for one, other in zip(first, second, strict=True))
    assert (torch.get_num_threads(), torch.get_rng_state().tolist()) == (threads, state.tolist())
    _, none = trained(steps=0)
    assert all((each == 0.0).all() for each in none)
    assert any(np.ptp(each) > 0.0 for each in first)
