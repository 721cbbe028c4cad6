"""Training: what it learns, that it is deterministic, and what it refuses."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from automl.data import DataBundle, load_data
from automl.data.bundle import tensor_bundle
from automl.models import build_model
from automl.training import EpochReport, TrainingOptions, _schedule, evaluate, train
from search_spaces.errors import InputError, TrimtabError


@pytest.fixture(scope="module")
def digits() -> DataBundle:
    return load_data("digits", {"size": 16})


def small() -> DataBundle:
    rng = np.random.default_rng(0)
    part = rng.integers(0, 256, (33, 1, 16, 16), dtype=np.uint8), np.arange(33) % 3
    return tensor_bundle("noise", [part, part, part], classes=3)


def lenet(seed: int = 0, classes: int = 10) -> nn.Module:
    return build_model("lenet5", classes=classes, input_shape=(1, 16, 16), seed=seed)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_learns_digits(digits: DataBundle) -> None:
    model = lenet()
    before = evaluate(model, digits.test)
    reports: list[EpochReport] = []
    train(model, digits, TrainingOptions(epochs=4, lr=0.05, batch_size=32), on_epoch=reports.append)
    assert before < 0.3
    assert evaluate(model, digits.test) > 0.93
    assert [(report.epoch, report.epochs) for report in reports] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert reports[-1].loss < reports[0].loss / 3
    assert not model.training


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_same_seed_same_weights(optimizer: Any) -> None:
    """Dropout included, whatever torch's own random state is, which is left as it was."""
    data = small()
    results = []
    for state, seed in ((1, 0), (2, 0), (1, 1)):
        model = build_model("alexnet_cifar", {"hidden": 16}, classes=3, input_shape=(1, 16, 16))
        torch.manual_seed(state)
        expected = torch.rand(3)
        torch.manual_seed(state)
        train(model, data, TrainingOptions(epochs=2, batch_size=8, lr=0.001, optimizer=optimizer, seed=seed))
        assert torch.equal(torch.rand(3), expected)
        results.append(weights(model))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_no_epochs_change_nothing() -> None:
    model = lenet(classes=3)
    before = weights(model).clone()
    train(model, small(), TrainingOptions(epochs=0))
    assert torch.equal(weights(model), before)


def test_divergence_is_an_error() -> None:
    with pytest.raises(TrimtabError, match=r"^training diverged in epoch \d.*lower lr, it is 1e\+18$") as caught:
        train(lenet(classes=3), small(), TrainingOptions(epochs=3, lr=1e18, warmup_epochs=0))
    assert not isinstance(caught.value, InputError)


def test_a_lone_last_image_does_not_stop_batch_norm() -> None:
    model = build_model("resnet20", classes=3, input_shape=(1, 16, 16))
    train(model, small(), TrainingOptions(epochs=1, batch_size=32))  # 33 images
    assert bool(weights(model).isfinite().all())


def test_weight_decay_leaves_batch_norm_and_biases_alone() -> None:
    """With a learning signal of zero only decayed weights shrink."""

    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.bn(self.conv(x)).mean((2, 3)) * 0
            return out

    model = Silent()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(model, small(), TrainingOptions(epochs=1, batch_size=33, lr=0.5, weight_decay=0.1, warmup_epochs=0))
    after = dict(model.named_parameters())
    assert torch.equal(after["bn.weight"], before["bn.weight"])
    assert torch.equal(after["conv.bias"], before["conv.bias"])
    assert float(after["conv.weight"].detach().norm()) < float(before["conv.weight"].norm())


def test_schedule() -> None:
    """A rise to the peak, then a cosine: half of it in the middle, nearly nothing at the end."""
    rates = [_schedule(step, 110, 10) for step in range(110)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[60] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.001
    assert _schedule(0, 1, 0) == 1


def test_augmentation_is_used_and_seeded() -> None:
    data = small()
    seen: list[torch.Tensor] = []

    def record(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        seen.append(images + torch.rand(1, generator=generator))
        return images

    bundle = DataBundle("it", data.train, data.val, data.test, data.input_shape, 3, "0", record)
    for _ in range(2):
        train(lenet(classes=3), bundle, TrainingOptions(epochs=2, batch_size=33))
    assert len(seen) == 4
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[1])


def test_evaluate_is_in_eval_mode_and_puts_the_mode_back() -> None:
    data = small()
    model = nn.Sequential(nn.Dropout(0.9), nn.Flatten(), nn.Linear(256, 3)).train()
    assert evaluate(model, data.val) == evaluate(model, data.val, batch_size=5)
    assert model.training
    assert isinstance(data.val, TensorDataset)
    images, labels = data.val.tensors
    with torch.no_grad():
        expected = (model.eval()(images).argmax(1) == labels).double().mean().item()
    assert evaluate(model, data.val) == pytest.approx(expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": -1},
        {"batch_size": 0},
        {"lr": 0},
        {"lr": math.nan},
        {"momentum": 1},
        {"weight_decay": -1},
        {"label_smoothing": 1},
        {"optimizer": "rmsprop"},
        {"warmup_epochs": -1},
        {"workers": -1},
    ],
    ids=str,
)
def test_options_out_of_range(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(InputError, match=f"^{name} .*{value!r}$"):
        TrainingOptions(**{"epochs": 1, **wrong})


def test_device_that_is_not_there() -> None:
    for device in ("cuda:99", "abacus"):
        with pytest.raises(InputError, match="use 'cpu'"):
            train(lenet(classes=3), small(), TrainingOptions(epochs=1, device=device))
