"""Baselines: trained once, cached, or read from a checkpoint; a file that does not fit is refused in one line."""

import copy
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from automl.baseline import baseline_file, load_baseline, state_digest
from automl.cache import cache_dir
from automl.data import DataBundle
from automl.data.bundle import tensor_bundle
from automl.models import build_model
from automl.training import EpochReport, TrainingOptions
from search_spaces.errors import InputError, TrimtabError

OPTIONS = TrainingOptions(epochs=1, batch_size=8, lr=0.01)
KEY = {"name": "resnet20", "args": {}}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data() -> DataBundle:
    rng = np.random.default_rng(0)
    part = rng.integers(0, 256, (16, 1, 8, 8), dtype=np.uint8), np.arange(16) % 4
    return tensor_bundle("noise", [part, part, part], classes=4)


@pytest.fixture
def model() -> nn.Module:
    return network()


def network(name: str = "resnet20", seed: int = 0) -> nn.Module:
    return build_model(name, classes=4, input_shape=(1, 8, 8), seed=seed)


def same(one: nn.Module, other: nn.Module) -> bool:
    return state_digest(one) == state_digest(other)


def baseline(model: nn.Module, data: DataBundle, **options: Any) -> tuple[nn.Module, list[EpochReport]]:
    told: list[EpochReport] = []
    return load_baseline(model, KEY, data, TrainingOptions(**{**vars(OPTIONS), **options}), None, told.append), told


def test_trained_once_then_cached(model: nn.Module, data: DataBundle) -> None:
    before = state_digest(model)
    first, told = baseline(model, data)
    assert len(told) == 1
    assert state_digest(model) == before
    assert not same(first, model)
    again, told = baseline(model, data)
    assert not told
    assert same(first, again)
    assert not again.training
    _, told = baseline(model, data, workers=0)  # changes the speed, not the result
    assert not told


def test_whatever_makes_it_names_it(model: nn.Module, data: DataBundle) -> None:
    files = {
        baseline_file(model, KEY, data, OPTIONS),
        baseline_file(network(seed=1), KEY, data, OPTIONS),
        baseline_file(network("plain20"), KEY, data, OPTIONS),
        baseline_file(model, KEY, data, TrainingOptions(**{**vars(OPTIONS), "epochs": 2})),
        baseline_file(model, KEY, data, TrainingOptions(**{**vars(OPTIONS), "seed": 2})),
        baseline_file(model, {"name": "a/../b", "args": {}}, data, OPTIONS),
        baseline_file(model, KEY, DataBundle(**{**vars(data), "digest": "0"}), OPTIONS),
    }
    assert len(files) == 7
    assert {file.parent for file in files} == {cache_dir("baselines")}


@pytest.mark.parametrize("damage", ["cut short", "something else", "empty", "of another network"])
def test_damaged_cache_is_trained_again(model: nn.Module, data: DataBundle, damage: str) -> None:
    first, _ = baseline(model, data)
    file = baseline_file(model, KEY, data, OPTIONS)
    whole = file.read_bytes()
    if damage == "of another network":
        save_file(network("lenet300_100").state_dict(), file)
    else:
        file.write_bytes({"cut short": whole[:-100], "something else": b"no tensors", "empty": b""}[damage])
    again, told = baseline(model, data)
    assert len(told) == 1
    assert same(first, again)
    assert file.read_bytes() == whole


def test_divergence_leaves_nothing_in_the_cache(model: nn.Module, data: DataBundle) -> None:
    with pytest.raises(TrimtabError, match="diverged"):
        baseline(network("lenet300_100"), data, lr=1e30, epochs=3, warmup_epochs=0)
    assert not list(cache_dir("baselines").iterdir())


@pytest.mark.parametrize("wrapped", ["plain", "state_dict", "model", "module.", "without counters"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_checkpoint(model: nn.Module, data: DataBundle, tmp_path: Path, suffix: str, wrapped: str) -> None:
    trained = network(seed=7)
    state: dict[str, Any] = OrderedDict(trained.state_dict())
    if wrapped == "module.":
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    elif wrapped == "without counters":
        state = {name: tensor for name, tensor in state.items() if "num_batches_tracked" not in name}
    file = tmp_path / f"checkpoint{suffix}"
    if suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save({wrapped: state, "epoch": 3} if wrapped in ("state_dict", "model") else state, file)
    loaded = load_baseline(model, KEY, data, OPTIONS, file)
    assert same(loaded, trained)
    assert not same(model, trained)
    assert not loaded.training
    assert not (tmp_path / "cache").exists()


class Trap:
    """Unpickling it would run code."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (Path("trap"),)


def refusal(model: nn.Module, data: DataBundle, checkpoint: Path) -> str:
    before = state_digest(model)
    with pytest.raises(InputError) as caught:
        load_baseline(model, KEY, data, OPTIONS, checkpoint)
    message = str(caught.value)
    assert "\n" not in message
    assert str(checkpoint) in message
    assert state_digest(model) == before
    return message


def test_missing_checkpoint(model: nn.Module, data: DataBundle, tmp_path: Path) -> None:
    assert "is not there" in refusal(model, data, tmp_path / "absent.pt")
    assert "is not there" in refusal(model, data, tmp_path)
    (tmp_path / "weights.h5").write_bytes(b"")
    assert ".safetensors, .pt or .pth" in refusal(model, data, tmp_path / "weights.h5")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_corrupt_checkpoint(model: nn.Module, data: DataBundle, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"checkpoint{suffix}"
    if suffix == ".pt":
        torch.save(model.state_dict(), file)
    else:
        save_file(model.state_dict(), file)
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"nothing of the kind", b""):
        file.write_bytes(content)
        assert "cannot be read" in refusal(model, data, file)


def test_checkpoint_of_another_architecture(model: nn.Module, data: DataBundle, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pt"
    state = model.state_dict()
    wider = {**state, "fc.weight": torch.zeros(5, 64)}
    fewer = {name: tensor for name, tensor in state.items() if name != "fc.bias"}
    for content, said in (
        (wider, "'fc.weight' is [5, 64], the model has [4, 64]"),
        (fewer, "lacks 'fc.bias'"),
        ({**state, "extra": torch.zeros(1)}, "no 'extra'"),
        (network("lenet300_100").state_dict(), "another architecture"),
    ):
        torch.save(content, file)
        assert said in refusal(model, data, file)
    for content in ([1, 2], {"state_dict": {"fc": 3}}, {"epoch": 3}, torch.zeros(3)):
        torch.save(content, file)
        assert "no state dict" in refusal(model, data, file)


def test_code_in_a_checkpoint_is_not_run(
    model: nn.Module, data: DataBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole, trap, bare = tmp_path / "whole.pt", tmp_path / "trap.pt", tmp_path / "bare.pth"
    torch.save(copy.deepcopy(model), whole)
    torch.save({**model.state_dict(), "extra": Trap()}, trap)
    bare.write_bytes(pickle.dumps(Trap()))
    for file in (whole, trap, bare):
        assert "weights only" in refusal(model, data, file)
    assert not (tmp_path / "trap").exists()
