"""Reconstruction against patches gathered by torch's own unfold and least squares solved by numpy."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automl.compression import reconstruction
from automl.compression.reconstruction import LayerReconstruction, gather, sample_patches
from search_spaces.errors import InputError

CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 1},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (1, 3), "stride": (2, 1), "padding": (0, 1)},
    {"kernel_size": 3, "dilation": 2, "padding": 2},
    {"kernel_size": 3, "groups": 2, "padding": 1},
    {"kernel_size": (3, 5), "padding": "same"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def name_of(arguments: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in arguments.items())


def mask(width: int, kept: list[int]) -> Tensor:
    return torch.tensor([index in kept for index in range(width)])


def reference(X: Tensor, weight: Tensor, columns: Tensor, damping: float) -> np.ndarray[Any, Any]:
    """argmin ||X_S W'^T - X W^T||^2 + damping ||W' - W_S||^2 as one stacked least-squares problem, by SVD."""
    kept = columns.nonzero().squeeze(1)
    left = torch.cat([X[:, kept], damping**0.5 * torch.eye(len(kept), dtype=X.dtype)])
    right = torch.cat([X @ weight.T, damping**0.5 * weight[:, kept].T])
    return np.linalg.lstsq(left.numpy(), right.numpy(), rcond=None)[0].T


@pytest.mark.parametrize("arguments", CONVOLUTIONS, ids=name_of)
def test_patches_times_weights_are_the_output(arguments: dict[str, Any]) -> None:
    conv = nn.Conv2d(4, 6, bias=False, **arguments).double()
    x = torch.randn(3, 4, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    patches = sample_patches(conv, x, points=1000, generator=torch.Generator())
    # with all positions asked for, they come in order
    per_group = patches.reshape(len(patches), conv.groups, -1)
    weight = conv.weight.reshape(conv.groups, 6 // conv.groups, -1)
    outputs = torch.einsum("pgd,god->pgo", per_group, weight).flatten(1)
    torch.testing.assert_close(outputs, conv(x).permute(0, 2, 3, 1).flatten(0, 2))


def test_patches_are_sampled_without_replacement_anew_for_each_image() -> None:
    conv = nn.Conv2d(1, 1, 1)
    x = torch.arange(100.0).reshape(1, 1, 10, 10).repeat(8, 1, 1, 1)
    drawn = sample_patches(conv, x, points=10, generator=torch.Generator().manual_seed(1)).reshape(8, 10).long()
    assert all(len(set(image.tolist())) == 10 for image in drawn)
    assert len({tuple(image.tolist()) for image in drawn}) == 8


@pytest.mark.parametrize("ridge", [1e-12, reconstruction.RIDGE])
@pytest.mark.parametrize("arguments", CONVOLUTIONS, ids=name_of)
def test_correction_is_the_least_squares_solution(arguments: dict[str, Any], ridge: float) -> None:
    generator = torch.Generator().manual_seed(2)
    conv = nn.Conv2d(8, 6, **arguments).double()
    images = torch.randn(20, 8, 9, 7, dtype=torch.float64, generator=generator).relu()
    layer = gather(nn.Sequential(conv), {"0": 63}, images, points_per_image=100, seed=0)["0"]
    X = sample_patches(conv, images, 1000, generator).reshape(-1, conv.groups, 8 // conv.groups * layer.area)
    inputs, outputs = (
        mask(8, [0, 2, 3, 5, 6, 7]).reshape(conv.groups, -1),
        mask(6, [0, 1, 4, 5]).reshape(conv.groups, -1),
    )
    correction = layer.correction(inputs, outputs, ridge).reshape(conv.groups, 4 // conv.groups, -1)
    for g in range(conv.groups):
        columns = inputs[g].repeat_interleave(layer.area)
        weight = conv.weight.detach().reshape(conv.groups, 6 // conv.groups, -1)[g, outputs[g]]
        expected = reference(X[:, g], weight, columns, ridge * float(X.square().sum()) / X[0].numel())
        np.testing.assert_allclose((weight[:, columns] + correction[g]).numpy(), expected, atol=1e-8)


def test_single_precision_is_enough() -> None:
    """Post-activation inputs share a large mean, the ill-conditioned case."""
    generator = torch.Generator().manual_seed(3)
    linear = nn.Linear(200, 30)
    x = torch.randn(2000, 200, generator=generator) @ torch.randn(200, 200, generator=generator) / 14 + 3
    inputs, outputs = mask(200, list(range(0, 200, 2)))[None], torch.ones(1, 30, dtype=torch.bool)
    single = gather(nn.Sequential(linear), {"0": 1}, x, 1, seed=0)["0"].correction(inputs, outputs)
    double = gather(nn.Sequential(linear.double()), {"0": 1}, x.double(), 1, seed=0)["0"].correction(inputs, outputs)
    assert (single - double).abs().max() < 1e-3 * double.abs().max()


def test_a_layer_with_more_columns_than_rows_is_solved_in_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(4)
    linear = nn.Linear(120, 10).double()
    x = torch.randn(25, 120, dtype=torch.float64, generator=generator)
    inputs, outputs = mask(120, list(range(70)))[None], mask(10, [1, 4, 5])[None]
    dual = gather(nn.Sequential(linear), {"0": 1}, x, 1, seed=0)["0"]
    monkeypatch.setattr(reconstruction, "DUAL_FROM", 100)
    primal = gather(nn.Sequential(linear), {"0": 1}, x, 1, seed=0)["0"]
    assert dual.dual
    assert dual.statistics.shape == (1, 25, 120)
    assert not primal.dual
    assert dual.energy == pytest.approx(primal.energy)
    torch.testing.assert_close(dual.correction(inputs, outputs), primal.correction(inputs, outputs))


def test_memory_of_a_wide_layer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "MAX_ORDER", 40)
    x = torch.randn(300, 50, generator=torch.Generator().manual_seed(5))
    layer = gather(nn.Sequential(nn.Linear(50, 3)), {"0": 1}, x, 1, seed=0)["0"]
    assert layer.dual
    assert layer.statistics.shape == (1, 40, 50)


@pytest.mark.parametrize("ridge", [1e-6, reconstruction.RIDGE])
def test_a_channel_that_others_span_costs_nothing(ridge: float) -> None:
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(50, 4, 6, 6, generator=generator)
    x = torch.cat([x, (x[:, :1] - 2 * x[:, 3:])], dim=1)
    conv = nn.Conv2d(5, 7, 3, padding=1)
    layer = gather(nn.Sequential(conv), {"0": 36}, x, 36, seed=0)["0"]
    inputs, outputs = mask(5, [0, 1, 2, 3])[None], torch.ones(1, 7, dtype=torch.bool)
    weight = conv.weight.detach()[:, :4]
    wanted = conv(x)
    before = (F.conv2d(x[:, :4], weight, conv.bias, padding=1) - wanted).norm() / wanted.norm()
    weight = weight + layer.correction(inputs, outputs, ridge).reshape(weight.shape)
    after = (F.conv2d(x[:, :4], weight, conv.bias, padding=1) - wanted).norm() / wanted.norm()
    assert before > 0.3
    assert after < 2 * ridge + 1e-5


def test_dead_channels_change_nothing() -> None:
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(7))
    x[:, [1, 4]] = 0
    linear = nn.Linear(6, 3)
    layer = gather(nn.Sequential(linear), {"0": 1}, x, 1, seed=0)["0"]
    outputs = torch.ones(1, 3, dtype=torch.bool)
    removed_dead = layer.correction(mask(6, [0, 1, 2, 3, 5])[None], outputs)
    assert not removed_dead.any()
    kept_dead = layer.correction(mask(6, [0, 1, 2, 3])[None], outputs)
    assert torch.isfinite(kept_dead).all()
    assert not kept_dead[:, 1].any()
    silent = gather(nn.Sequential(linear), {"0": 1}, torch.zeros(30, 6), 1, seed=0)["0"]
    assert not silent.correction(mask(6, [0, 1])[None], outputs).any()


def test_falls_back_to_double_precision() -> None:
    """A system that single precision cannot factorise: two equal columns and next to no ridge."""
    column = torch.rand(64, 1, generator=torch.Generator().manual_seed(8)) + 1
    X = torch.cat([column, column, column * 3], dim=1)
    gram = (X.double().T @ X.double()).float()
    gram[0, 1] = gram[1, 0] = gram[0, 0] * (1 + 1e-7)
    layer = LayerReconstruction(torch.ones(1, 2, 3), 1, gram[None], False, float(gram.diagonal().mean()))
    correction = layer.correction(mask(3, [0, 1])[None], torch.ones(1, 2, dtype=torch.bool), ridge=1e-6)
    torch.testing.assert_close(correction.sum(1), torch.tensor([3.0, 3.0]), atol=1e-2, rtol=0)


def test_an_unsolvable_system_says_so() -> None:
    layer = LayerReconstruction(torch.ones(1, 2, 3), 1, -torch.eye(3)[None] + 0.1, False, 1.0)
    with pytest.raises(torch.linalg.LinAlgError):
        layer.correction(mask(3, [0, 1])[None], torch.ones(1, 2, dtype=torch.bool))


def test_activations_that_are_not_finite_are_refused() -> None:
    images = torch.ones(4, 3)
    images[2, 1] = float("nan")
    with pytest.raises(InputError, match=r"input of layer '0' is not finite"):
        gather(nn.Sequential(nn.Linear(3, 2)), {"0": 1}, images, 1, seed=0)


def test_hooks_are_gone_and_the_network_is_untouched() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = (gather(model, {"0": 36, "3": 1}, torch.rand(70, 3, 8, 8), 3, seed=s) for s in (0, 1))
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(first["0"].statistics, second["0"].statistics)


def test_a_matrix_of_a_recurrent_layer_is_passed_over() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.fc = nn.LSTM(5, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.lstm(x)[0][:, -1])  # type: ignore[no-any-return]

    found = gather(Reader().eval(), {"lstm.weight_hh_l0": 4, "fc": 1}, torch.randn(20, 4, 5), 3, seed=0)
    assert list(found) == ["fc"]
