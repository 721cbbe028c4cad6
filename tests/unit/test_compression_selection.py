"""Magnitude importance against sums written out by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from automl.compression import selection
from automl.compression.selection import magnitude, rank_units
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError


class Residual(nn.Module):
    """A stream read by two convolutions and a linear layer after flattening, with a depthwise carrier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.outer = nn.Conv2d(6, 8, 1)
        self.fc = nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.outer(self.depthwise(self.inner(x)).relu())
        return self.fc(x.relu().flatten(1))


@pytest.fixture(scope="module")
def captured() -> tuple[Residual, PrunableNetwork]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Residual().eval()
    return model, PrunableNetwork(model, torch.randn(2, 3, 4, 4))


def test_one_consumer_is_amc(captured: tuple[Residual, PrunableNetwork]) -> None:
    model, network = captured
    scores = magnitude(network, network.prune({}))
    sums = model.outer.weight.detach().abs().sum((0, 2, 3)).double().numpy()
    np.testing.assert_allclose(scores["inner"], sums / sums.mean(), rtol=1e-6)


def test_consumers_of_a_stream_weigh_the_same(captured: tuple[Residual, PrunableNetwork]) -> None:
    model, network = captured
    scores = magnitude(network, network.prune({}))
    inner = model.inner.weight.detach().abs().sum((0, 2, 3)).double().numpy()
    fc = model.fc.weight.detach().abs().reshape(5, 8, 16).sum((0, 2)).double().numpy()
    np.testing.assert_allclose(scores["stem"], inner / inner.mean() + fc / fc.mean(), rtol=1e-6)
    with torch.no_grad():
        model.fc.weight *= 1000
    network = PrunableNetwork(model, torch.randn(2, 3, 4, 4))
    np.testing.assert_allclose(magnitude(network, network.prune({}))["stem"], scores["stem"], rtol=1e-5)


def test_grouped_consumers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2)).eval()
    network = PrunableNetwork(model, torch.randn(1, 3, 5, 5))
    scores = magnitude(network, network.prune({}))["0"]
    weight = model[2].weight.detach().abs().double()
    by_channel = np.concatenate([weight[:3].sum((0, 2, 3)), weight[3:].sum((0, 2, 3))])
    units = network.units["2"].in_unit
    expected = np.bincount(units, by_channel)
    np.testing.assert_allclose(scores, expected / expected.mean(), rtol=1e-6)


def test_ranking_is_falling_and_ties_go_by_index(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0, 0.0]).repeat(2, 1))
    network = PrunableNetwork(model, torch.randn(1, 4))
    assert rank_units(network, network.prune({}), "magnitude")["0"].tolist() == [1, 3, 2, 4, 0, 5]


def test_another_criterion_is_another_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(selection.IMPORTANCES, "last", lambda network, model: {"0": np.arange(6.0)})
    network = PrunableNetwork(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)).eval(), torch.randn(1, 4))
    assert rank_units(network, network.prune({}), "last")["0"].tolist() == [5, 4, 3, 2, 1, 0]
    with pytest.raises(InputError, match=r"unknown importance 'magnitud'; did you mean 'magnitude'\?"):
        rank_units(network, network.prune({}), "magnitud")
