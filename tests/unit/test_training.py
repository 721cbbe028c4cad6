"""Training: what it learns, that it is deterministic, and what it refuses."""

import contextlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from automl.data import DataBundle, load_data
from automl.data.bundle import tensor_bundle
from automl.models import build_model
from automl.training import EpochReport, Loss, TrainingOptions, evaluate, rate_share, train
from automl.training_state import TrainingState
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


class Killed(Exception):  # noqa: N818
    """As a kill would, between two epochs."""


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_an_interrupted_training_ends_with_the_same_weights(optimizer: Any, tmp_path: Path) -> None:
    options = TrainingOptions(epochs=4, batch_size=8, lr=0.001, optimizer=optimizer)

    def run(path: Path | None, about: str = "it", kill: int = 0) -> tuple[torch.Tensor, list[int]]:
        model = build_model("alexnet_cifar", {"hidden": 16}, classes=3, input_shape=(1, 16, 16))  # drops out
        epochs: list[int] = []

        def note(report: EpochReport) -> None:
            epochs.append(report.epoch)
            if report.epoch == kill:
                raise Killed

        with contextlib.suppress(Killed):
            train(model, small(), options, state=TrainingState(path, about), on_epoch=note)
        return weights(model), epochs

    file = tmp_path / "training.pt"
    expected, _ = run(None)
    run(file, kill=2)
    again, epochs = run(file)
    assert epochs == [3, 4]
    assert torch.equal(again, expected)
    other, epochs = run(file, about="another")
    assert epochs == [1, 2, 3, 4]
    assert torch.equal(other, expected)
    file.write_bytes(file.read_bytes()[:1000])
    damaged, epochs = run(file)
    assert epochs == [1, 2, 3, 4]
    assert torch.equal(damaged, expected)
    TrainingState(file, "it").forget()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_of_a_damaged_state_nothing_is_used(part: str, tmp_path: Path) -> None:
    """One tensor has another shape than the rest of the file says."""
    model = lenet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.rand(2, 1, 16, 16)).sum().backward()
    optimizer.step()
    state = TrainingState(tmp_path / "training.pt", "it")
    state.save(3, model, optimizer)
    found = torch.load(tmp_path / "training.pt", weights_only=True)
    held = found["model"] if part == "model" else list(found["optimizer"]["state"].values())[-1]
    name = list(held)[-1]
    held[name] = torch.zeros(7, 7, 7)
    torch.save(found, tmp_path / "training.pt")

    fresh = lenet(seed=1)
    other = torch.optim.SGD(fresh.parameters(), lr=0.1, momentum=0.9)
    before = weights(fresh).clone()
    assert state.restore(fresh, other) == 0
    assert torch.equal(weights(fresh), before)
    assert not other.state
    state.save(3, model, optimizer)
    assert state.restore(fresh, other) == 3
    assert torch.equal(weights(fresh), weights(model))


def test_distillation_is_hintons_loss() -> None:
    torch.manual_seed(0)
    student, teacher, x = nn.Linear(5, 3), nn.Linear(5, 3), torch.randn(7, 5)
    labels = torch.arange(7) % 3
    options = TrainingOptions(epochs=1, distillation=0.3, temperature=2.0)
    with torch.no_grad():
        found = Loss(teacher, options, torch.device("cpu"))(x, student(x), labels)
        p, q = (torch.softmax(each(x).double() / 2, 1).numpy() for each in (teacher, student))
        hard = -torch.log_softmax(student(x), 1)[range(7), labels].mean().item()
    soft = (p * np.log(p / q)).sum(1).mean() * 4
    assert found.item() == pytest.approx(0.7 * hard + 0.3 * soft, rel=1e-5)


def test_a_student_comes_nearer_to_its_teacher(digits: DataBundle) -> None:
    teacher, distances = lenet(seed=1), []
    train(teacher, digits, TrainingOptions(epochs=2, lr=0.05, batch_size=32))
    for share in (0.0, 1.0):
        student = lenet()
        options = TrainingOptions(epochs=2, lr=0.02, batch_size=32, distillation=share, temperature=2.0)
        before = weights(teacher).clone()
        train(student, digits, options, teacher=teacher)
        assert torch.equal(weights(teacher), before)
        images = torch.stack([digits.val[index][0] for index in range(100)])
        with torch.no_grad():
            answers = [torch.log_softmax(network(images), 1) for network in (teacher, student)]
        distances.append(nn.functional.kl_div(answers[1], answers[0], log_target=True, reduction="batchmean").item())
    assert distances[1] < distances[0]


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


def test_rate_share() -> None:
    """A rise to the peak, then a cosine: half of it in the middle, nearly nothing at the end."""
    rates = [rate_share(step, 110, 10) for step in range(110)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[60] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.001
    assert rate_share(0, 1, 0) == 1


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
