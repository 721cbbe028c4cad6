"""Magnitude importance against sums written out by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from automl.compression import selection
from automl.compression.importance.base import Criterion, ImportanceInputs
from automl.compression.importance.l1 import magnitude
from automl.compression.selection import importance_names, rank_units, score_units
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


def inputs_of(network: PrunableNetwork) -> ImportanceInputs:
    return ImportanceInputs(network, network.prune({}))


@pytest.fixture(scope="module")
def captured() -> tuple[Residual, PrunableNetwork]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Residual().eval()
    return model, PrunableNetwork(model, torch.randn(2, 3, 4, 4))


def test_one_consumer_is_amc(captured: tuple[Residual, PrunableNetwork]) -> None:
    model, network = captured
    scores = magnitude(inputs_of(network))
    sums = model.outer.weight.detach().abs().sum((0, 2, 3)).double().numpy()
    np.testing.assert_allclose(scores["inner"], sums / sums.mean(), rtol=1e-6)


def test_consumers_of_a_stream_weigh_the_same(captured: tuple[Residual, PrunableNetwork]) -> None:
    model, network = captured
    scores = magnitude(inputs_of(network))
    inner = model.inner.weight.detach().abs().sum((0, 2, 3)).double().numpy()
    fc = model.fc.weight.detach().abs().reshape(5, 8, 16).sum((0, 2)).double().numpy()
    np.testing.assert_allclose(scores["stem"], inner / inner.mean() + fc / fc.mean(), rtol=1e-6)
    with torch.no_grad():
        model.fc.weight *= 1000
    network = PrunableNetwork(model, torch.randn(2, 3, 4, 4))
    np.testing.assert_allclose(magnitude(inputs_of(network))["stem"], scores["stem"], rtol=1e-5)


def test_grouped_consumers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2)).eval()
    network = PrunableNetwork(model, torch.randn(1, 3, 5, 5))
    scores = magnitude(inputs_of(network))["0"]
    weight = model[2].weight.detach().abs().double()
    by_channel = np.concatenate([weight[:3].sum((0, 2, 3)), weight[3:].sum((0, 2, 3))])
    units = network.units["2"].in_unit
    expected = np.bincount(units, by_channel)
    np.testing.assert_allclose(scores, expected / expected.mean(), rtol=1e-6)


def test_ranking_is_falling_and_ties_go_by_index() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0, 0.0]).repeat(2, 1))
    network = PrunableNetwork(model, torch.randn(1, 4))
    assert rank_units(inputs_of(network), "magnitude")["0"].tolist() == [1, 3, 2, 4, 0, 5]


def test_another_criterion_is_another_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(selection.IMPORTANCES, "last", Criterion(lambda inputs: {"0": np.arange(6.0)}))
    network = PrunableNetwork(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)).eval(), torch.randn(1, 4))
    assert rank_units(inputs_of(network), "last")["0"].tolist() == [5, 4, 3, 2, 1, 0]
    with pytest.raises(InputError, match=r"unknown importance 'magnitud'; did you mean 'magnitude'\?"):
        rank_units(inputs_of(network), "magnitud")


def last(inputs: ImportanceInputs) -> dict[str, np.ndarray]:
    return {group.name: np.arange(float(group.width)) for group in inputs.network.graph.groups}


LABELLED = Criterion(last, labelled=True)
NOT_ONE = 3


def linear_pair() -> ImportanceInputs:
    return inputs_of(PrunableNetwork(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)).eval(), torch.randn(1, 4)))


def test_a_users_own_is_named_by_reference() -> None:
    assert rank_units(linear_pair(), f"{__name__}:last")["0"].tolist() == [5, 4, 3, 2, 1, 0]
    assert selection.criterion(f"{__name__}:LABELLED") is LABELLED
    with pytest.raises(InputError, match=r"an importance is a Criterion or a function of ImportanceInputs, .* is 3"):
        rank_units(linear_pair(), f"{__name__}:NOT_ONE")


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"0": np.ones(0)}, r"each of the 6 units of group '0', 'mine' gives an array of shape \[0\]"),
        ({"0": np.ones(5)}, r"gives an array of shape \[5\]"),
        ({"0": np.array([1, 2, np.nan, 4, 5, 6])}, "gives NaN or infinity"),
    ],
)
def test_scores_that_do_not_fit_are_refused(
    monkeypatch: pytest.MonkeyPatch, scores: dict[str, np.ndarray], message: str
) -> None:
    monkeypatch.setitem(selection.IMPORTANCES, "mine", Criterion(lambda inputs: scores))
    with pytest.raises(InputError, match=message):
        score_units(linear_pair(), "mine")


def test_every_importance_is_described() -> None:
    described = dict(importance_names())
    assert list(described) == list(selection.IMPORTANCES)
    assert all(text.endswith(".") for text in described.values())
