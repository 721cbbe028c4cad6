"""How the zeros of a network are chosen: by a criterion, and while it is trained."""

import contextlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automl.compression import CompressionOptions, Compressor, GradualSparsity, SparsityOptions, fine_tune
from automl.compression.sparsity import mask, taylor
from automl.compression.treatments import GRADIENT_BATCH, Compressed
from automl.data import DataBundle
from automl.data.bundle import tensor_bundle
from automl.training import EpochReport, TrainingOptions, step_count, train
from automl.training_state import TrainingState
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError
from search_spaces.policy import CompressionPolicy, LayerPolicy
from search_spaces.sparsity import Sparsity

FEATURES = 12
POLICY = CompressionPolicy(
    {
        "embed": LayerPolicy(sparsity=0.75),
        "gru.weight_ih_l0": LayerPolicy(rank=4, sparsity=0.5, weight_bits=4),
        "gru.weight_hh_l0": LayerPolicy(pattern="1:4"),
        "fc": LayerPolicy(sparsity=0.4, pattern="column", weight_bits=3, weight_scheme="asymmetric"),
    }
)
OPTIONS = TrainingOptions(epochs=4, batch_size=16, lr=0.01, momentum=0.9)


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gru = nn.Linear(8, FEATURES), nn.GRU(FEATURES, 8, batch_first=True)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.gru(self.embed(x.flatten(1, 2)).relu())[0][:, -1])  # type: ignore[no-any-return]


def data() -> DataBundle:
    rng = np.random.default_rng(0)
    part = rng.integers(0, 256, (80, 1, 6, 8), dtype=np.uint8), np.arange(80) % 3
    return tensor_bundle("noise", [part, part, part], classes=3)


def compressor(criterion: str = "magnitude", images: int = 80) -> Compressor:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    x, y = data().train.tensors  # type: ignore[attr-defined]
    options = CompressionOptions(reconstruct=False, sparsity=SparsityOptions(criterion), calibration_images=images)
    return Compressor(PrunableNetwork(Reader().eval(), x[:2], prove=False), x, options, y)


def dense() -> Compressed:
    return compressor().compress(POLICY, sparse=False)


def zeros(found: Compressed) -> dict[str, int]:
    return {name: int((~mask).sum()) for name, mask in found.masks.items()}


def wanted(found: Compressed) -> dict[str, int]:
    return {layer.name: layer.weights - layer.nonzeros for layer in found.graph.layers if layer.sparsity}


def masks_in(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers() if name.endswith(".0.mask")}


def check(found: Compressed) -> None:
    assert zeros(found) == wanted(found)
    names = {"embed": "embed.weight", "fc": "fc.weight", "gru.weight_ih_l0_factor": "gru.weight_ih_l0_factor.weight"}
    for layer, kept in found.masks.items():
        weight = found.module.get_parameter(names.get(layer, layer))
        assert not weight[~kept].any()
        if layer in found.weights:
            assert torch.equal(weight, found.weights[layer].values)


def test_zeros_are_left_to_the_training() -> None:
    found = dense()
    assert set(zeros(found).values()) == {0}
    assert sorted(found.masks) == sorted(wanted(found))
    original = compressor().network.prune({}).get_parameter("embed.weight")
    assert torch.equal(found.module.get_parameter("embed.weight"), original)
    assert len(found.module.get_parameter("fc.weight").unique()) > 8 * 3 // 2  # not rounded either
    check(fine_tune(found, lambda module: None))


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
def test_zeros_grow_along_the_cubic_schedule(criterion: str) -> None:
    bundle = data()
    steps = step_count(bundle, OPTIONS)
    assert steps == 4 * 5
    schedule = GradualSparsity(steps=15, every=5, criterion=criterion)
    seen: list[dict[str, Tensor]] = []
    found = fine_tune(
        dense(),
        lambda module: train(module, bundle, OPTIONS, on_epoch=lambda report: seen.append(masks_in(module))),
        gradual=schedule,
    )
    check(found)
    embed = [each["embed.parametrizations.weight.0.mask"] for each in seen]
    for epoch, kept in enumerate(embed, start=1):  # five steps each
        share = 0.75 * (1 - (1 - min(epoch / 3, 1)) ** 3)
        assert int((~kept).sum()) == int(share * kept.numel() + 0.5)
    assert all(not (after & ~before).any() for before, after in pairwise(embed))
    assert torch.equal(embed[-1], found.masks["embed"])


class Killed(Exception):  # noqa: N818
    """As a kill would, between two epochs."""


@pytest.mark.parametrize("kill", [1, 3])
def test_after_a_kill_it_goes_on_to_the_same_network(kill: int, tmp_path: Path) -> None:
    bundle = data()

    def run(path: Path | None, until: int = 0) -> Compressed | None:
        def note(report: EpochReport) -> None:
            if report.epoch == until:
                raise Killed

        state = TrainingState(path, "it")
        with contextlib.suppress(Killed):
            return fine_tune(
                dense(),
                lambda module: train(module, bundle, OPTIONS, state=state, on_epoch=note),
                "step",
                GradualSparsity(steps=13, every=3),
            )
        return None

    expected = run(None)
    assert run(tmp_path / "training.pt", until=kill) is None
    again = run(tmp_path / "training.pt")
    assert expected is not None
    assert again is not None
    check(again)
    one, other = expected.module.state_dict(), again.module.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(torch.equal(expected.masks[name], again.masks[name]) for name in expected.masks)


def test_a_training_that_ends_early_leaves_the_zeros_that_were_asked_for() -> None:
    bundle = data()
    check(fine_tune(dense(), lambda module: train(module, bundle, OPTIONS), gradual=GradualSparsity(steps=10**6)))


def test_frozen_weights_are_made_sparse_at_once() -> None:
    found = dense()
    found.module.requires_grad_(False)
    found.module.get_submodule("fc").requires_grad_(True)
    seen: list[int] = []

    def look(module: nn.Module) -> None:
        seen.append(int((module.get_submodule("embed").weight == 0).sum()))

    check(fine_tune(found, look, gradual=GradualSparsity(steps=5)))
    assert seen == [wanted(found)["embed"]]


def test_taylor_keeps_the_weights_that_the_loss_depends_on() -> None:
    policy = CompressionPolicy({"embed": LayerPolicy(sparsity=0.75)})
    made = compressor("taylor")
    found = made.compress(policy)
    module = made.network.prune({})
    x, y = data().train.tensors  # type: ignore[attr-defined]
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    scores = torch.zeros(FEATURES, 8, dtype=torch.float64)
    for images, labels in zip(x[order].split(GRADIENT_BATCH), y[order].split(GRADIENT_BATCH), strict=True):
        module.zero_grad()
        F.cross_entropy(module(images), labels).backward()
        weight = module.get_parameter("embed.weight")
        assert weight.grad is not None
        scores += taylor(weight, weight.grad)
    expected = mask(scores, Sparsity("element", 0.75))
    assert torch.equal(found.masks["embed"], expected)
    assert not torch.equal(found.masks["embed"], compressor().compress(policy).masks["embed"])
    assert all(parameter.grad is None for parameter in found.module.parameters())
    assert zeros(compressor("taylor").compress(POLICY)) == wanted(compressor("taylor").compress(POLICY))


def test_what_a_criterion_lacks_is_said_where_it_is_needed() -> None:
    network = compressor().network
    x, y = data().train.tensors  # type: ignore[attr-defined]
    options = CompressionOptions(reconstruct=False, sparsity=SparsityOptions("taylor"))
    for images, labels, lacking in [(None, None, "images"), (x, None, "labels")]:
        without = Compressor(network, images, options, labels)
        without.compress(CompressionPolicy({"fc": LayerPolicy(weight_bits=8)}))
        with pytest.raises(InputError, match=f"'taylor' of sparsity needs calibration .* got no {lacking}"):
            without.compress(POLICY)
    with pytest.raises(InputError, match="one calibration label for each of the 80 images"):
        Compressor(network, x, options, y[:5])
    with pytest.raises(InputError, match="no criterion 'tailor' of sparsity; did you mean 'taylor'"):
        SparsityOptions("tailor")
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match=r"share of the fine-tuning in \[0, 1\]"):
            SparsityOptions(gradual=share)
