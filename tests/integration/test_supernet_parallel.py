"""A supernet trained by two processes of Ray Train is the one that a single process trains."""

from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from run_processes import listening
from torch import nn

from automl.compression.elastic import Elastic
from automl.config_sections import SupernetSection
from automl.data import load_data
from automl.orchestration.ray_session import ray_session
from automl.supernet.network import Supernet
from automl.supernet.training import Rank, SupernetReport, train_supernet
from automl.training_state import TrainingState
from search_spaces.building import SpaceOptions, build_space
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import TrimtabError

DATA = load_data("digits", {"size": 8})


def model() -> nn.Module:
    """Without batch norm, whose statistics are those of a process's own images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, DATA.classes)),
        ).eval()


def made() -> Supernet:
    network = PrunableNetwork(model(), DATA.val[0][0][None])
    return Supernet(network, build_space(network.graph, SpaceOptions(kernel=[1])), Elastic({}))


def section(**fields: Any) -> SupernetSection:
    phases = [{"free": ["kernel"], "epochs": 1}, {"free": ["channels"], "epochs": 1}]
    training = {"batch_size": 101, "lr": 0.1, **fields.pop("training", {})}  # parts of 51 and 50 images
    return SupernetSection(**{"phases": phases, "training": training, "workers": 2, **fields})


def ranking() -> Rank:
    """By magnitude; a function of a test's module is unknown to Ray's processes, an inner one travels whole."""

    def rank(network: PrunableNetwork) -> dict[str, Any]:
        weights = network.prune({}).state_dict()
        size = {group.name: weights[f"{group.name}.weight"].abs().flatten(1).sum(1) for group in network.graph.groups}
        return {name: each.argsort(descending=True).numpy() for name, each in size.items()}

    return rank


class KilledError(Exception):
    pass


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*deprecated")  # what Ray uses of itself
def test_two_processes_train_as_one_and_go_on_after_a_kill(tmp_path: Path) -> None:
    rank = ranking()
    alone, together, resumed = made(), made(), made()
    train_supernet(alone, model(), DATA, section(), rank)
    reports: list[SupernetReport] = []
    heard: set[str] = set()

    def hear(report: SupernetReport) -> None:
        reports.append(report)
        heard.update(listening(psutil.Process()))

    def kill(report: SupernetReport) -> None:
        raise KilledError

    from automl.orchestration.supernet import train_in_parallel  # which imports Ray before it is told where to listen

    with ray_session(2):
        with pytest.raises(TrimtabError, match=r"workers is 3, one CPU each, and the Ray that runs here has 2"):
            train_in_parallel(made(), model(), DATA, section(workers=3), rank, state=TrainingState(None, "it"))
        none = TrainingState(None, "it")
        train_in_parallel(together, model(), DATA, section(), rank, state=none, on_epoch=hear)
        state = TrainingState(tmp_path / "state", "it")
        with pytest.raises(KilledError):
            train_in_parallel(resumed, model(), DATA, section(), rank, state=state, on_epoch=kill)
        train_in_parallel(resumed, model(), DATA, section(), rank, state=state)
    assert [report.epoch for report in reports] == [1, 2]
    assert heard
    assert heard <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert [record["epoch"] for record in resumed.history] == [1, 2]
    # many steps with sums of gradients: only where all processes hold the same weights
    start, end = made().state_dict(), alone.state_dict()
    assert any((start[name] - end[name]).abs().max() > 0.05 for name in end if end[name].is_floating_point())
    for name, tensor in together.state_dict().items():
        torch.testing.assert_close(tensor, end[name], rtol=1e-3, atol=1e-4)
        assert torch.equal(tensor, resumed.state_dict()[name])
    assert reports[-1].loss == pytest.approx(alone.history[-1]["loss"], rel=1e-3)
