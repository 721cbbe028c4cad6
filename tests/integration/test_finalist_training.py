"""What a worker does with a network that is compared in the end: it is compressed, trained, and kept."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import automl
from automl.compression.elastic import Elastic
from automl.compression.reconstruction import LayerReconstruction
from automl.problem import Problem
from automl.run import work
from automl.run.finalist_folder import FinalistFolder
from automl.run.finalists import Finalist, training_of
from automl.run.work import Work, load_finalist, reinitialise
from automl.supernet.checkpoint import to_bytes as supernet_to_bytes
from automl.supernet.network import Supernet
from automl.training import evaluate
from search_spaces.errors import InputError
from search_spaces.policy import CompressionPolicy, LayerPolicy

POLICY = CompressionPolicy(
    {
        "conv2": LayerPolicy(keep=0.5, sparsity=0.75),
        "fc1": LayerPolicy(keep=0.5, sparsity=0.5, weight_bits=4),
    }
)


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Work]:
    folder: Path = tmp_path_factory.mktemp("workers")

    def make(backend: str = "none", **sparsity: Any) -> Work:
        config = automl.load_config(
            {
                "model": {"name": "lenet5"},
                "data": {"name": "digits", "args": {"size": 16}},
                "baseline": {"epochs": 0},
                "fine_tune": {"epochs": 3, "lr": 0.01},
                "budget": {"metric": "macs", "ratio": 0.5},
                "compression": {"calibration_images": 40, "sparsity": sparsity},
                "measure": {"backend": backend},
            }
        )
        problem = Problem.build(config)
        return Work(config, safetensors.torch.save(problem.model.state_dict()), "", problem.constraints)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(folder / "cache"))
        yield make


def train(made: Work, finalist: Finalist, path: Path) -> None:
    folder = FinalistFolder(path)
    folder.finish(made.train(finalist, folder.unfinished(), folder))


def finished(made: Work, folder: Path, name: str = "best") -> dict[str, Tensor]:
    finalist = Finalist(name, POLICY, search_accuracy=0.5)
    train(made, finalist, folder)
    return load_finalist(made._problem, finalist, folder).module.state_dict()


def zeros(tensors: dict[str, Tensor]) -> dict[str, float]:
    return {name: float((tensors[f"{name}.weight"] == 0).float().mean()) for name in ("conv2", "fc1")}


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
def test_a_network_ends_as_sparse_as_its_policy_says(
    criterion: str, workers: Callable[..., Work], tmp_path: Path
) -> None:
    """Whether zeros are chosen before the training or during it, which leads to other weights."""
    at_once = finished(workers(criterion=criterion), tmp_path / "once")
    growing = finished(workers(criterion=criterion, gradual=0.5), tmp_path / "growing")
    for tensors in (at_once, growing):
        found = zeros(tensors)
        assert found["conv2"] == 0.75
        assert found["fc1"] >= 0.5  # and what four bits round to zero
    assert not torch.equal(at_once["conv2.weight"] == 0, growing["conv2.weight"] == 0)


def test_a_network_is_kept_with_its_masks_and_codes(workers: Callable[..., Work], tmp_path: Path) -> None:
    made, finalist = workers(), Finalist("best", POLICY, search_accuracy=0.5)
    train(made, finalist, tmp_path)
    found = load_finalist(made._problem, finalist, tmp_path)
    assert found.graph == made._problem.graph.apply(POLICY)
    for layer in ("conv2", "fc1"):
        assert int(found.masks[layer].sum()) == found.graph.layer(layer).nonzeros
    assert found.weights.keys() == {"fc1"}
    assert torch.equal(found.weights["fc1"].values, found.module.get_parameter("fc1.weight"))
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        load_finalist(made._problem, finalist, tmp_path)


class Killed(Exception):  # noqa: N818
    """As a kill would, between two epochs."""


def test_growing_zeros_survive_a_kill(
    workers: Callable[..., Work], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = finished(workers(gradual=0.8), tmp_path / "whole")

    keep = FinalistFolder.epoch

    def told(self: FinalistFolder, state: bytes, epoch: int, epochs: int) -> None:
        keep(self, state, epoch, epochs)
        if epoch == 2:
            raise Killed

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(FinalistFolder, "epoch", told)
        finished(workers(gradual=0.8), tmp_path / "killed")
    assert (tmp_path / "killed" / "training.pt").is_file()
    again = finished(workers(gradual=0.8), tmp_path / "killed")
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_what_is_trained_from_scratch_is_not_reconstructed_first(
    workers: Callable[..., Work], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrected: list[bool] = []
    corrections = LayerReconstruction.corrections

    def seen(self: LayerReconstruction, inputs: Tensor) -> list[Tensor]:
        corrected.append(True)
        return corrections(self, inputs)

    monkeypatch.setattr(LayerReconstruction, "corrections", seen)
    made = workers()
    finished(made, tmp_path / "scratch", "from_scratch")
    assert not corrected
    finished(made, tmp_path / "best")
    assert corrected


def test_a_network_of_a_supernet_is_tested_before_it_is_fine_tuned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it is compared with is trained for as long as the supernet was, where that is asked for."""
    config = automl.load_config(
        {
            "model": {"name": "lenet5"},
            "data": {"name": "digits", "args": {"size": 16}},
            "baseline": {"epochs": 2, "lr": 0.02},
            "supernet": {"controls": True, "phases": [{"free": ["channels"], "epochs": 1}]},
            "fine_tune": {"epochs": 1, "lr": 0.01},
            "budget": {"metric": "macs", "ratio": 0.5},
            "measure": {"backend": "none"},
        }
    )
    assert training_of("from_scratch", config) == replace(training_of("best", config), epochs=3, lr=0.02)
    problem = Problem.outline(config)
    supernet = Supernet(problem.network, problem.space, Elastic({}))
    made = Work(config, supernet_to_bytes(supernet), "", problem.constraints)
    policy = problem.space.decode(problem.space.least)
    monkeypatch.setattr(work, "train", lambda module, *_, **__: reinitialise(module, 0))
    results = {}
    for name in ("baseline", "best", "from_scratch"):
        train(made, Finalist(name, policy if name != "baseline" else CompressionPolicy()), tmp_path / name)
        results[name] = json.loads((tmp_path / name / "result.json").read_text())
    network = made._compressor.apply(policy)
    assert results["best"]["accuracy_before"] == evaluate(network, problem.data.test, problem.metric)
    assert results["best"]["accuracy_before"] != results["best"]["accuracy"]
    assert {name: result["fine_tune_epochs"] for name, result in results.items()} == {
        "baseline": 0,
        "best": 1,
        "from_scratch": 3,
    }
    assert "accuracy_before" not in results["from_scratch"]


def test_a_network_is_timed_as_its_policy_says(workers: Callable[..., Work], tmp_path: Path) -> None:
    """Before anything is fine-tuned: 8-bit layers are timed as integers, as the latency table prices them."""
    made = workers("tvm")
    eight = CompressionPolicy({"conv2": LayerPolicy(weight_bits=8, activation_bits=8)})
    whole = made.compile(CompressionPolicy(), "whole", tmp_path)
    quantised = made.compile(eight, "quantised", tmp_path)
    assert not any(recipe.startswith("conv2d_u8") for recipe in whole.recipes)
    assert any(recipe.startswith("conv2d_u8") for recipe in quantised.recipes)
