"""Layers of a network taken apart again and again."""

import pytest
import torch
from torch import nn

from automl.compression import CompressionOptions, Compressor, decomposition
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError
from search_spaces.policy import CompressionPolicy, LayerPolicy


@pytest.fixture
def factored(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was factored so far."""
    done: list[object] = []
    factorise = decomposition.factorise

    def count(layer: nn.Module, method: str, rank: tuple[int, ...]) -> nn.Sequential:
        done.append((method, rank))
        return factorise(layer, method, rank)

    monkeypatch.setattr(decomposition, "factorise", count)
    return done


def compressor() -> Compressor:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    module = nn.Sequential(nn.Conv2d(2, 12, 3), nn.Conv2d(12, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)).eval()
    network = PrunableNetwork(module, torch.randn(2, 2, 12, 12), prove=False)
    return Compressor(network, None, CompressionOptions(reconstruct=False))


def policy(keep: float, rank: int) -> CompressionPolicy:
    return CompressionPolicy({"1": LayerPolicy(keep=keep, rank=(rank, rank), factorisation="tucker2")})


POLICIES = [policy(0.5, 4), policy(1.0, 4), policy(0.5, 6), policy(0.5, 4)]


def test_policies_in_any_order_give_the_same_and_each_rank_is_computed_once(factored: list[object]) -> None:
    once = [compressor().apply(each).state_dict() for each in POLICIES]
    factored.clear()
    made = compressor()
    forth = [made.apply(each) for each in POLICIES]
    assert factored == [("tucker2", (4, 4)), ("tucker2", (6, 6))]
    for module in forth:  # what was given away is the caller's
        for tensor in module.parameters():
            tensor.data.zero_()
    back = [made.apply(each).state_dict() for each in reversed(POLICIES)][::-1]
    assert len(factored) == 2
    for expected, found in zip(once, back, strict=True):
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_what_was_not_used_for_longest_is_forgotten(factored: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    made = compressor()
    monkeypatch.setattr(decomposition, "HELD_WEIGHTS", 800)  # of two of those below
    for rank in (4, 5, 4, 6, 4, 5):
        made.apply(policy(1.0, rank))
    assert [rank for _, (rank, _) in factored] == [4, 5, 6, 5]


def test_one_that_is_larger_than_all_that_is_held_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decomposition, "HELD_WEIGHTS", 0)
    assert made_of(compressor().apply(policy(1.0, 4))) == [4, 4, 16]


def made_of(module: nn.Module) -> list[int]:
    """Output channels of the parts."""
    return [module.get_submodule(f"1.{part}").out_channels for part in range(3)]  # type: ignore[misc]


def test_weights_that_no_module_holds_are_refused() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second_weight = nn.Linear(8, 8), nn.Parameter(torch.randn(8, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(self.first(x), self.second_weight)

    network = PrunableNetwork(Functional().eval(), torch.randn(2, 8), prove=False)
    made = Compressor(network, None, CompressionOptions(reconstruct=False))
    with pytest.raises(InputError, match="layer 'second' is part of another module and cannot be taken apart"):
        made.apply(CompressionPolicy({"second": LayerPolicy(rank=2)}))
