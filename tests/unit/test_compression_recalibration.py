"""Batch-norm recalibration against statistics computed by hand."""

import pytest
import torch
from torch import nn

from automl.compression.recalibration import BATCH, recalibrate_batch_norm


def network() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4)
    )
    return model.eval()


def test_one_batch_gives_the_population_statistics() -> None:
    model, images = network(), torch.randn(50, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    recalibrate_batch_norm(model, images)
    first = model[0](images).transpose(0, 1).flatten(1)
    torch.testing.assert_close(model[1].running_mean, first.mean(1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model[1].running_var, first.var(1), atol=1e-6, rtol=1e-5)
    # the second batch norm sees the first one in training mode, dropout off
    inputs = model[4](nn.functional.batch_norm(model[0](images), None, None, training=True).relu())
    second = inputs.transpose(0, 1).flatten(1)
    torch.testing.assert_close(model[5].running_mean, second.mean(1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model[5].running_var, second.var(1), atol=1e-5, rtol=1e-4)


def test_several_batches_are_averaged_plainly() -> None:
    model, images = network(), torch.randn(BATCH + 44, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    recalibrate_batch_norm(model, images)
    halves = [model[0](half).transpose(0, 1).flatten(1) for half in images.chunk(2)]
    torch.testing.assert_close(model[1].running_mean, sum(h.mean(1) for h in halves) / 2, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model[1].running_var, sum(h.var(1) for h in halves) / 2, atol=1e-6, rtol=1e-5)


def test_only_the_running_statistics_change() -> None:
    model, images = network(), torch.randn(10, 3, 8, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recalibrate_batch_norm(model, images)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"{layer}.{name}" for layer in (1, 5) for name in statistics}
    assert not any(module.training for module in model.modules())
    assert model[1].momentum == pytest.approx(0.1)


def test_a_network_without_batch_norm_is_left_alone() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    before = model[1].weight.clone()
    recalibrate_batch_norm(model, torch.randn(2, 3, 2, 2))
    assert torch.equal(model[1].weight, before)
