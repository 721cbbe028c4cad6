"""Supernets trained on pictures whose class is the quadrant that is bright: shrinking, the sandwich, going on after a
kill, several processes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from automl.compression.elastic import Elastic, IntArray
from automl.compression.importance.base import ImportanceInputs
from automl.compression.selection import rank_units
from automl.config_sections import SupernetSection
from automl.data.bundle import DataBundle, tensor_bundle
from automl.supernet.checkpoint import load_supernet, to_bytes
from automl.supernet.network import Supernet
from automl.supernet.training import SupernetReport, accuracies, train_supernet
from automl.training import TrainingOptions, evaluate, train
from automl.training_state import TrainingState
from search_spaces.building import SpaceOptions, build_space
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import TrimtabError


class Elastics(nn.Module):
    """Two residual blocks of 3 x 3 convolutions; with batch norm or without."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8) if norm else nn.Identity())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12) if norm else nn.Identity(), nn.ReLU()),
                nn.Conv2d(12, 8, 3, padding=1),
            )
            for _ in range(2)
        )
        self.fc = nn.Linear(8 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = x + block(x)
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))  # type: ignore[no-any-return]


def quadrants(count: int = 256) -> DataBundle:
    """Noise [1, 8, 8], brighter in the quadrant that is the class."""
    generator = np.random.default_rng(0)
    splits = []
    for size in (count, 128, 64):
        labels = generator.integers(0, 4, size)
        images = generator.integers(0, 140, (size, 1, 8, 8))
        for image, label in zip(images, labels, strict=True):
            image[:, 4 * (label // 2) :][:, :4, 4 * (label % 2) :][:, :, :4] += 20
        splits.append((images.astype(np.uint8), labels.astype(np.int64)))
    return tensor_bundle("quadrants", splits, classes=4)


DATA = quadrants()


def rank(network: PrunableNetwork) -> dict[str, IntArray]:
    return rank_units(ImportanceInputs(network, network.prune({}), None, None, 0, 8), "magnitude")


def made(norm: bool = True, teach: int = 3) -> tuple[nn.Module, PrunableNetwork, Supernet]:
    """A teacher, as captured, and a supernet that begins as it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Elastics(norm)
    train(model, DATA, TrainingOptions(epochs=teach, batch_size=32, lr=0.02))
    network = PrunableNetwork(model, DATA.val[0][0][None])
    space = build_space(network.graph, SpaceOptions(depth=0, kernel=[1], lower_bound=0.25))
    return model, network, Supernet(network, space, Elastic(rank(network)))


def section(**fields: Any) -> SupernetSection:
    training = {"epochs": 4, "batch_size": 32, "lr": 0.02, "distillation": 0.5, "temperature": 1.0}
    return SupernetSection(**{**fields, "training": {**training, **fields.get("training", {})}})


def equal(one: Supernet, other: Supernet) -> bool:
    """Bit for bit."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("method", ["progressive", "sandwich"])
def test_training_lifts_the_smallest_sub_network_and_keeps_the_largest(method: str) -> None:
    model, _, supernet = made()
    images = DATA.train[:][0]
    before = accuracies(supernet, DATA, images)
    reports: list[SupernetReport] = []
    how = section(method=method, training={"epochs": 6})
    train_supernet(supernet, model, DATA, how, rank, on_epoch=reports.append)
    after = accuracies(supernet, DATA, images)
    assert after["smallest"] > before["smallest"] + 0.1
    assert after["largest"] > before["largest"] - 0.05
    assert [report.epoch for report in reports] == [1, 2, 3, 4, 5, 6]
    phases = ["sandwich"] * 6 if method == "sandwich" else ["kernel", "kernel", "depth", *["channels"] * 3]
    assert [report.phase for report in reports] == phases
    assert list(reports[-1].accuracies) == ["smallest", "middle", "largest"]
    assert supernet.history == [report.record() for report in reports]
    assert not supernet.training
    # the shared statistics are those of the largest network, by then
    whole = supernet.network.prune({})
    assert evaluate(whole, DATA.val) == pytest.approx(after["largest"], abs=0.03)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_killed_training_goes_on_to_the_same_bits(tmp_path: Path, epoch: int) -> None:
    """Also where the next epoch sorts the channels anew."""

    def kill(report: SupernetReport) -> None:
        if report.epoch == epoch:
            raise KilledError

    model, network, supernet = made(teach=1)
    how = section(phases=[{"free": ["kernel", "depth"], "epochs": 2}, {"free": ["channels"], "epochs": 2}])
    train_supernet(supernet, model, DATA, how, rank)

    _, _, killed = made(teach=1)
    with pytest.raises(KilledError):
        train_supernet(killed, model, DATA, how, rank, state=TrainingState(tmp_path / "state", "it"), on_epoch=kill)
    _, _, resumed = made(teach=1)
    seen: list[int] = []
    state = TrainingState(tmp_path / "state", "it")
    train_supernet(resumed, model, DATA, how, rank, state=state, on_epoch=lambda report: seen.append(report.epoch))
    assert seen == [*range(epoch + 1, 5)]
    assert [record["epoch"] for record in resumed.history] == [1, 2, 3, 4]
    assert equal(supernet, resumed)
    assert any((units != resumed.elastic.order[name]).any() for name, units in rank(network).items())

    (tmp_path / "supernet.safetensors").write_bytes(to_bytes(resumed))
    loaded = load_supernet(tmp_path / "supernet.safetensors", network, resumed.space)
    assert equal(loaded, resumed)
    assert loaded.history == resumed.history


def test_a_training_that_diverges_says_what_to_do() -> None:
    model, _, supernet = made(teach=1)
    with pytest.raises(TrimtabError, match=r"training diverged in epoch 1 .*; lower lr, it is 1000"):
        train_supernet(supernet, model, DATA, section(training={"lr": 1e9}), rank)
