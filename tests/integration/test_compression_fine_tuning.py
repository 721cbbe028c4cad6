"""Training further with masks, quantisers and ranks in force."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from automl.compression import CompressionOptions, Compressor
from automl.compression.fine_tuning import LEARNED, fine_tune
from automl.compression.structure import quantiser_name
from automl.compression.treatments import Compressed
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError
from search_spaces.policy import CompressionPolicy, LayerPolicy

POLICY = CompressionPolicy(
    {
        "0": LayerPolicy(keep=0.75, weight_bits=3, activation_bits=4),
        "2": LayerPolicy(rank=4, sparsity=0.5, weight_bits=4, weight_scheme="asymmetric"),
        "4": LayerPolicy(pattern="2:4"),
        "7": LayerPolicy(sparsity=0.5, weight_bits=2, weight_scheme="ternary", activation_bits=3),
    }
)


def compressed() -> tuple[Compressed, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    module = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 9, 4),
    ).eval()
    x = torch.rand(128, 1, 8, 8)
    y = (x[:, 0, :4, :4].mean((1, 2)) > x[:, 0, 4:, 4:].mean((1, 2))).long()
    made = Compressor(PrunableNetwork(module, x[:2]), x, CompressionOptions(reconstruct=False))
    return made.compress(POLICY), x, y


def descend(module: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int = 30) -> list[float]:
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    module.train()
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("learn", LEARNED)
def test_what_was_done_stays_done(learn: str) -> None:
    before, x, y = compressed()
    start = {name: tensor.clone() for name, tensor in before.module.state_dict().items()}
    losses: list[float] = []
    after = fine_tune(before, lambda module: losses.extend(descend(module, x, y)), learn)
    assert losses[-1] < 0.8 * losses[0]
    assert after.graph == before.graph
    state = after.module.state_dict()
    assert state.keys() == start.keys()  # plain modules again
    assert sum(parameter.numel() for parameter in after.module.parameters()) == after.graph.params
    assert not torch.equal(state["0.weight"], start["0.weight"])
    for layer in after.graph.layers:
        weight = after.module.get_parameter(f"{layer.name}.weight")
        if layer.sparsity is not None:
            assert (weight[~after.masks[layer.name]] == 0).all()
        if layer.weight_format is not None:
            assert torch.equal(weight, after.weights[layer.name].values)
            assert max(len(row.unique()) for row in weight.flatten(1)) <= 2**layer.weight_format.bits + 1
    with torch.no_grad():
        assert F.cross_entropy(after.module(x), y) < losses[0]


@pytest.mark.parametrize(("learn", "moves"), [("nothing", False), ("step", True), ("clip", True)])
def test_quantisers_learn_what_they_are_asked_to(learn: str, moves: bool) -> None:
    before, x, y = compressed()
    scale = before.module.get_submodule(quantiser_name("7")).scale.clone()
    after = fine_tune(before, lambda module: descend(module, x, y, 5), learn)
    assert (not torch.equal(after.module.get_submodule(quantiser_name("7")).scale, scale)) is moves


def test_nothing_trained_is_nothing_changed() -> None:
    before, x, _ = compressed()
    with torch.no_grad():
        expected = before.module(x)
        after = fine_tune(before, lambda module: None)
        torch.testing.assert_close(after.module(x), expected)


def test_what_cannot_be_learned_is_refused() -> None:
    with pytest.raises(InputError, match="learn one of nothing, step, clip, got 'steps'; did you mean 'step'"):
        fine_tune(compressed()[0], lambda module: None, "steps")
