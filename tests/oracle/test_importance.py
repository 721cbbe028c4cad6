"""Each criterion against a computation of its own: differences of the loss, minimisation, sums written out."""

import copy
from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional as F

from automl.compression.importance.base import ImportanceInputs
from automl.compression.importance.geometric_median import distances
from automl.compression.selection import score_units
from automl.models import build_model
from automl.testing.importance import probe_inputs, probe_network
from search_spaces.capture import PrunableNetwork

READERS = {"stem": ["inner", "fc"], "inner": ["outer"]}
"""Of the kit's network: the layers that read each group."""

MAKERS = {"stem": ["stem", "outer"], "inner": ["inner"]}


def costs(model: nn.Module, inputs: ImportanceInputs) -> torch.Tensor:
    assert inputs.images is not None
    with torch.no_grad():
        return F.cross_entropy(model(inputs.images.double()), inputs.labels, reduction="none")


def by_differences(model: nn.Module, readers: list[str], unit: int, inputs: ImportanceInputs) -> float:
    """Mean over the images of |dC/ds| at s = 1, where what the layers read of the unit is multiplied by s."""
    step = 1e-5
    moved = []
    for sign in (1, -1):
        for name in readers:
            module = model.get_submodule(name)
            module.saved = module.weight.detach().clone()
            module.weight.data[:, unit] *= 1 + sign * step
        moved.append(costs(model, inputs))
        for name in readers:
            model.get_submodule(name).weight.data.copy_(model.get_submodule(name).saved)
    return float(((moved[0] - moved[1]) / (2 * step)).abs().mean())


def test_taylor_is_the_slope_of_the_loss() -> None:
    model = probe_network().double()
    inputs = probe_inputs(probe_network())
    scores = score_units(inputs, "taylor")
    for group, readers in READERS.items():
        slopes = [by_differences(model, readers, unit, inputs) for unit in range(len(scores[group]))]
        np.testing.assert_allclose(scores[group], slopes, rtol=1e-3, atol=1e-7)


def test_taylor_is_the_slope_of_the_loss_in_a_network_of_the_zoo() -> None:
    model = build_model("resnet20", {}, classes=4, input_shape=(3, 8, 8))
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(6, 3, 8, 8, generator=generator), torch.tensor([0, 1, 2, 3, 0, 1])
    network = PrunableNetwork(model, images[:2], prove=False)
    inputs = ImportanceInputs(network, network.prune({}), images, labels)
    scores = score_units(inputs, "taylor")
    model = model.double()
    group = next(group for group in network.graph.groups if group.name == "blocks.4.conv1")
    for unit in (0, 9, 31):
        slope = by_differences(model, list(group.consumers), unit, inputs)
        assert scores[group.name][unit] == pytest.approx(slope, rel=2e-3)


def test_the_filter_nearest_to_the_geometric_median_comes_last() -> None:
    """The minimiser of the sum of distances, found by a general optimiser that knows nothing of filters."""
    generator = np.random.default_rng(0)
    for dimensions in (2, 3, 6):
        filters = generator.normal(size=(9, dimensions)) + 3.0  # far from zero: the norm would choose another one

        def total(point: np.ndarray, filters: np.ndarray = filters) -> float:
            return sum(float(np.sqrt(((point - row) ** 2).sum())) for row in filters)

        starts = [filters.mean(0), *filters]
        median = min((minimize(total, start, method="Nelder-Mead").x for start in starts), key=total)
        planted = np.vstack([filters, median])
        assert int(distances(planted).argmin()) == 9
        written_out = [sum(np.linalg.norm(one - other) for other in planted) for one in planted]
        np.testing.assert_allclose(distances(planted), written_out, rtol=1e-6)
        assert distances(planted)[9] == pytest.approx(total(median), rel=1e-6)
        assert int(np.linalg.norm(planted, axis=1).argmin()) != 9


def filter_of(model: nn.Module, layer: str, unit: int) -> np.ndarray:
    return model.get_submodule(layer).weight.detach().double().numpy()[unit].ravel()


@pytest.mark.parametrize(
    ("importance", "worth"),
    [
        ("l1", lambda rows, unit: sum(abs(value) for value in rows[unit])),
        ("l2", lambda rows, unit: np.linalg.norm(rows[unit])),
        ("geometric_median", lambda rows, unit: sum(np.linalg.norm(rows[unit] - row) for row in rows)),
    ],
)
def test_filters_written_out(importance: str, worth) -> None:
    model = probe_network()
    scores = score_units(probe_inputs(model), importance)
    for group, makers in MAKERS.items():
        expected = np.zeros(len(scores[group]))
        for layer in makers:
            rows = [filter_of(model, layer, unit) for unit in range(len(expected))]
            amounts = np.array([worth(rows, unit) for unit in range(len(expected))])
            expected += amounts / amounts.mean()
        np.testing.assert_allclose(scores[group], expected, rtol=1e-5)


def test_magnitude_written_out() -> None:
    model = probe_network()
    scores = score_units(probe_inputs(model), "magnitude")
    for group, readers in READERS.items():
        expected = np.zeros(len(scores[group]))
        for layer in readers:
            weight = model.get_submodule(layer).weight.detach().double().numpy()
            amounts = np.array([np.abs(weight[:, unit]).sum() for unit in range(len(expected))])
            expected += amounts / amounts.mean()
        np.testing.assert_allclose(scores[group], expected, rtol=1e-5)


def test_slimming_is_the_size_of_gamma() -> None:
    model = probe_network()
    with torch.no_grad():
        model.inner_norm.weight[::2] *= -1  # a negative scale is as much of one
    scores = score_units(probe_inputs(model), "batch_norm_scale")
    np.testing.assert_array_equal(scores["inner"], model.inner_norm.weight.detach().abs().double().numpy())
    both = (model.stem_norm.weight.abs() + model.outer_norm.weight.abs()).detach().double().numpy() / 2
    np.testing.assert_allclose(scores["stem"], both, rtol=1e-6)


def test_units_of_several_channels_and_of_grouped_convolutions() -> None:
    """Flattened maps give a unit several columns, grouped convolutions several blocks of them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 4)
        ).eval()
        images, labels = torch.randn(5, 3, 4, 4), torch.tensor([0, 1, 2, 3, 0])
    network = PrunableNetwork(model, images)
    scores = score_units(ImportanceInputs(network, network.prune({}), images, labels), "taylor")
    gates = torch.ones(5, 6, 1, 1, requires_grad=True)
    x = model[3](model[2](model[1](model[0](images)))) * gates
    F.cross_entropy(model[5](x.flatten(1)), labels, reduction="sum").backward()
    first = torch.ones(5, 8, 1, 1, requires_grad=True)
    F.cross_entropy(model[1:](model[0](images) * first), labels, reduction="sum").backward()
    for name, gate in (("0", first), ("2", gates)):
        if name not in scores:
            continue
        layer, expected = network.units[name], np.zeros(len(scores[name]))
        change = np.zeros((5, len(expected)))
        for image, channel in product(range(5), range(len(layer.out_unit))):
            change[image, layer.out_unit[channel]] += float(gate.grad[image, channel])
        np.testing.assert_allclose(scores[name], np.abs(change).mean(0), rtol=1e-4)
    assert scores


class Recurrent(nn.Module):
    """Its hidden units are read by a matrix inside of the LSTM and by a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, batch_first=True)
        self.answer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.lstm(x)[0][:, -1])


def test_taylor_of_hidden_units_is_the_slope_of_the_loss() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Recurrent().eval()
        images, labels = torch.randn(4, 7, 5), torch.tensor([0, 1, 2, 0])
    network = PrunableNetwork(model, images)
    inputs = ImportanceInputs(network, network.prune({}), images, labels)
    (group,) = network.graph.groups
    scores = score_units(inputs, "taylor")[group.name]
    model = model.double()
    slopes = []
    for unit in range(6):
        moved = []
        for scale in (1 + 1e-5, 1 - 1e-5):
            other = copy.deepcopy(model)
            other.lstm.weight_hh_l0.data[:, unit] *= scale
            other.answer.weight.data[:, unit] *= scale
            moved.append(costs(other, inputs))
        slopes.append(float(((moved[0] - moved[1]) / 2e-5).abs().mean()))
    np.testing.assert_allclose(scores, slopes, rtol=1e-3)
    gates = model.lstm.weight_ih_l0.detach().reshape(4, 6, 5), model.lstm.weight_hh_l0.detach().reshape(4, 6, 6)
    shares = [gate.abs().sum((0, 2)).numpy() for gate in gates]
    expected = sum(share / share.mean() for share in shares)  # all gates of a unit are its filters
    np.testing.assert_allclose(score_units(inputs, "l1")[group.name], expected, rtol=1e-5)
