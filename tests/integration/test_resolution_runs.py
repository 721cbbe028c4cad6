"""Networks that read smaller images: finished, measured beside others, exported and proven again."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch.nn.functional as F
from torch import Tensor, nn

from automl.api import search
from automl.config import load_config
from automl.configured import example_input
from automl.data.resized import resized
from automl.export import verify_worker
from automl.export.rebuild import rebuild_network
from automl.export.verify import verify
from automl.problem import Problem
from automl.run.finalist_folder import FinalistFolder
from automl.run.finalists import Finalist, measure_all
from automl.run.work import Work, load_finalist
from automl.training import evaluate
from search_spaces.policy import CompressionPolicy, LayerPolicy


class AnySize(nn.Module):
    """Two convolutions and the mean of the map."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.norm, self.head = nn.BatchNorm2d(16), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.two(F.relu(self.norm(self.one(x))))).mean((2, 3)))


CONFIG: dict[str, Any] = {
    "model": {"name": f"{__name__}:AnySize"},
    "data": {"name": "digits", "args": {"size": 16}},
    "baseline": {"epochs": 1},
    "space": {"resolution": [0.5, 12]},
    "budget": {"metric": "macs", "ratio": 0.3},
    "search": {"algorithm": "evolution", "evaluations": 6, "evaluators": 1},
    "compression": {"calibration_images": 40},
    "fine_tune": {"epochs": 1},
    "measure": {"backend": "torch"},
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


def test_a_network_is_finished_and_measured_at_its_resolution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(CONFIG)
    problem = Problem.build(config)
    worker = Work(config, safetensors.torch.save(problem.model.state_dict()), "", problem.constraints)
    layers = {"one": LayerPolicy(keep=0.5), "two": LayerPolicy(weight_bits=8, activation_bits=8)}
    finalists = [  # by names of networks that are measured in the config's backend alone
        Finalist("uniform", CompressionPolicy()),
        Finalist("random", CompressionPolicy(layers, problem.graph.digest, (12, 12)), search_accuracy=0.5),
    ]
    compiled = []
    for finalist in finalists:
        folder = FinalistFolder(tmp_path / finalist.name)
        folder.finish(worker.train(finalist, None, folder))
        found, error = worker.compile_finalist(finalist, folder.path, tmp_path)
        assert error is None
        compiled.append(found)
    smaller = load_finalist(problem, finalists[1], tmp_path / "random")
    result = json.loads((tmp_path / "random" / "result.json").read_text())
    assert smaller.graph.input_shape == (1, 12, 12)
    assert result["accuracy"] == evaluate(smaller.module, resized(problem.data, (12, 12)).test)
    assert result["accuracy"] != evaluate(smaller.module, problem.data.test)
    monkeypatch.setattr("automl.run.finalists.PROCESSES", 1)
    monkeypatch.setattr("automl.run.finalists.ROUNDS", 1)
    latencies = measure_all(compiled, example_input(problem.data), 1)  # each is traced for its own input
    assert latencies.keys() == {"uniform", "random"}


@pytest.mark.slow
def test_a_run_that_decides_on_the_resolution_is_exported_and_verified(tmp_path: Path) -> None:
    small = {"evaluations": 4, "algorithm": "evolution", "evaluators": 1}
    config = {**CONFIG, "model": {"name": "resnet20"}, "search": small, "measure": {"backend": "none"}}
    result = search(config, tmp_path / "run")
    assert result.state == "done"
    best = tmp_path / "run" / "best"
    size = result.summary["best"]["resolution"]
    assert size in ([8, 8], [12, 12])  # channels alone cannot come so far down
    assert result.summary["baseline"]["resolution"] is None
    manifest = json.loads((best / "manifest.json").read_text())
    assert (manifest["resolution"], manifest["input"]["shape"], manifest["left_out"]) == (size, [1, *size], {})
    report = verify(best)
    assert report.ok, report.failures
    assert f"{size[0]} x {size[1]}" in (tmp_path / "run" / "report.html").read_text()
    policy = json.loads((best / "policy.json").read_text())
    assert policy.pop("resolution") == size
    (best / "policy.json").write_text(json.dumps(policy))
    wrong = verify_worker._policy_difference(rebuild_network(best), best)
    assert wrong == f"it reads images of [1, 16, 16] by the policy and of {[1, *size]} in the network"
