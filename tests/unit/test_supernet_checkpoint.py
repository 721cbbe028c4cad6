"""Supernets as files: read back as they were, and refused in one line where they do not fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, load_file, save_file
from torch import nn

from automl.compression.elastic import Elastic
from automl.errors import InputError
from automl.supernet.checkpoint import FILE, checkpoint_file, load_supernet, to_bytes
from automl.supernet.network import Supernet
from search_spaces.building import SpaceOptions, build_space
from search_spaces.capture import PrunableNetwork
from search_spaces.space import SearchSpace

IMAGE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network(width: int = 8) -> PrunableNetwork:
    torch.manual_seed(0)
    layers = (
        *(nn.Conv2d(1, width, 5, padding=2, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 3)),
    )
    return PrunableNetwork(nn.Sequential(*layers), IMAGE[:1])


def space_of(prunable: PrunableNetwork, **options: Any) -> SearchSpace:
    return build_space(prunable.graph, SpaceOptions(**{"round_to": 2, "kernel": [1, 3], "ends": True, **options}))


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    prunable = network()
    generator = np.random.default_rng(0)
    order = {group.name: generator.permutation(group.width) for group in prunable.graph.groups}
    supernet = Supernet(prunable, space_of(prunable), Elastic(order))
    with torch.no_grad():
        for value in supernet.transforms.values():
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    file = tmp_path / FILE
    file.write_bytes(to_bytes(supernet))
    torch.save(supernet(IMAGE, supernet.space.cheapest()).detach(), tmp_path / "answers.pt")
    return file


def test_a_supernet_is_read_back(trained: Path) -> None:
    prunable = network()
    found = load_supernet(trained, prunable.holding({"0.weight": torch.zeros(8, 1, 5, 5)}), space_of(prunable))
    wanted = torch.load(trained.with_name("answers.pt"), weights_only=True)
    found.train()
    torch.testing.assert_close(found(IMAGE, found.space.cheapest()), wanted)
    saved, again = load_file(trained), load(to_bytes(found))
    assert saved.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in saved.items())


def test_bits_may_be_decided_beside_what_was_trained_and_less_may_be_decided(trained: Path) -> None:
    prunable = network()
    richer = space_of(prunable, weight_bits=[4, 8])
    poorer = space_of(prunable, kernel=[3], round_to=4)
    for space in (richer, poorer):
        found = load_supernet(trained, prunable, space)
        assert {each.dimension for each in found.space.decisions} == {"channels", "kernel"}
        assert set(found.elastic.transforms) == {
            f"{target}.{choice}"
            for each in space.decisions
            if each.dimension == "kernel"
            for target in each.targets
            for choice in each.choices
            if choice
        }


def test_the_directory_of_a_supernet_means_its_file(trained: Path) -> None:
    assert checkpoint_file(trained.parent) == trained == checkpoint_file(trained)


def refused(file: Path, prunable: PrunableNetwork | None = None, **options: Any) -> str:
    prunable = prunable or network()
    with pytest.raises(InputError) as caught:
        load_supernet(file, prunable, space_of(prunable, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_supernet_for_this_network_is_refused(trained: Path, tmp_path: Path) -> None:
    assert "is not there" in refused(tmp_path / "none.safetensors")
    assert "of another network" in refused(trained, network(width=12))
    foreign = refused(trained, round_to=1)
    assert "of another space" in foreign
    assert "0.channels may be 3 here" in foreign
    plain = tmp_path / "plain.safetensors"
    save_file({"weight": torch.zeros(1)}, plain)
    assert "is no supernet" in refused(plain)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(trained: Path, share: float) -> None:
    content = trained.read_bytes()
    trained.write_bytes(content[: int(share * len(content))])
    assert "damaged" in refused(trained)


@pytest.mark.parametrize("change", ["missing", "shape", "order", "transform", "space", "version"])
def test_a_damaged_file_is_refused(trained: Path, change: str) -> None:
    from safetensors import safe_open

    with safe_open(trained, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    match change:
        case "missing":
            del tensors["weights:0.weight"]
        case "shape":
            tensors["weights:0.weight"] = torch.zeros(8, 1, 3, 3)
        case "order":
            tensors["order:0"] = torch.zeros(8, dtype=torch.int64)
        case "transform":
            tensors["transforms:0.3"] = torch.eye(4)
        case "space":
            metadata["space"] = "[[1, 2]]"
        case _:
            metadata["version"] = "7"
    save_file(tensors, trained, metadata)
    assert ("version 7, made by a newer Trimtab" if change == "version" else "damaged") in refused(trained)
