"""Factored layers beyond what the conformance kit asks of each method."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from automl.compression.low_rank import factor_matrix, factorise, layer_spec, rank_by_energy, rank_by_ratio
from search_spaces.errors import InputError


class Standardised(nn.Conv2d):
    """Computes with other weights than it holds."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight - self.weight.mean(), self.bias)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Conv2d(8, 8, 3, groups=4), "layer 'layer' has no 'svd' factorisation: its convolution has 4 groups"),
        (nn.ConvTranspose2d(8, 8, 3), "is a convolution or linear layer, got ConvTranspose2d"),
        (nn.LSTM(8, 8), "is a convolution or linear layer, got LSTM"),
        (Standardised(8, 8, 3), "Standardised has another forward; leave it whole"),
    ],
)
def test_layers_that_are_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        factorise(module, "svd", 2)


def test_a_rank_may_be_a_number() -> None:
    conv = nn.Conv2d(8, 8, 3)
    one, other = factorise(conv, "svd", 3), factorise(conv, "svd", (3,))
    assert all(torch.equal(first, second) for first, second in zip(one.parameters(), other.parameters(), strict=True))


def test_a_layer_in_three_dimensions() -> None:
    conv = nn.Conv3d(6, 8, (2, 3, 3), stride=2, padding=1, dtype=torch.float64)
    x = torch.randn(2, 6, 7, 8, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for method, rank in (("svd", (8,)), ("tucker2", (6, 8))):
        assert torch.allclose(factorise(conv, method, rank, must_save=False)(x), conv(x), atol=1e-12)


def test_a_reparametrised_layer_gives_its_effective_weights() -> None:
    conv = parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))
    x = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    built = factorise(conv, "svd", 8, must_save=False)
    assert torch.allclose(built(x), conv(x), atol=1e-5)
    assert [name for name, _ in built.named_parameters()] == ["0.weight", "1.weight", "1.bias"]
    assert all(parameter.is_leaf for parameter in built.parameters())


def test_the_result_can_be_trained_saved_and_loaded() -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1)
    built = factorise(conv, "tucker2", (4, 4))
    built(torch.ones(1, 8, 5, 5)).sum().backward()
    assert all(parameter.grad is not None for parameter in built.parameters())
    fresh = nn.Sequential(nn.Conv2d(8, 4, 1, bias=False), nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 8, 1))
    fresh.load_state_dict(built.state_dict())
    x = torch.ones(2, 8, 5, 5)
    assert torch.equal(fresh(x), built(x))


def test_zero_weights_have_the_lowest_rank() -> None:
    assert rank_by_energy(torch.zeros(16, 16), "svd", 1.0) == (1,)
    assert rank_by_energy(torch.zeros(16, 16, 3, 3), "tucker2", 0.5) == (1, 1)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_padding_that_is_not_the_same_on_both_sides() -> None:
    conv = nn.Conv2d(6, 8, (4, 2), padding="same", dtype=torch.float64)
    x = torch.randn(2, 6, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for method, rank in (("svd", (8,)), ("spatial_svd", (16,)), ("tucker2", (6, 8))):
        assert torch.allclose(factorise(conv, method, rank, must_save=False)(x), conv(x), atol=1e-12)


def test_ranks_of_use_lose_nothing_that_more_would_keep() -> None:
    """One channel read through nine places of a kernel fills nine output channels at most."""
    conv = nn.Conv2d(20, 20, 3, dtype=torch.float64)
    with torch.no_grad():
        conv.weight[:, 1:] = 0
    assert rank_by_energy(conv.weight, "tucker2", 1.0) == (1, 9)
    x = torch.randn(1, 20, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(factorise(conv, "tucker2", (1, 9))(x), conv(x), atol=1e-12)
    with pytest.raises(InputError, match="of rank 1 and 20 in layer 'layer' only 1 and 9 can be used"):
        factorise(conv, "tucker2", (1, 20))


@pytest.mark.parametrize(
    ("matrix", "rank", "message"),
    [
        (torch.ones(3, 4, 5), 1, "has two dimensions, got \\[3, 4, 5\\]"),
        (torch.ones(3, 4), 4, "the rank of a \\[3, 4\\] matrix is from 1 to 3, got 4"),
        (torch.ones(3, 4), 0, "from 1 to 3, got 0"),
        (torch.tensor([[1.0, float("nan")]]), 1, "hold NaN or infinity"),
    ],
)
def test_matrices_that_are_refused(matrix: Tensor, rank: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        factor_matrix(matrix, rank)


def test_a_method_that_does_not_fit_a_weight() -> None:
    with pytest.raises(InputError, match="has no 'spatial_svd' factorisation: it is no two-dimensional convolution"):
        rank_by_energy(torch.ones(4, 4), "spatial_svd", 0.9)


def test_a_ratio_that_no_rank_has() -> None:
    spec = layer_spec(nn.Linear(4, 4), "fc")
    with pytest.raises(
        InputError, match=r"no rank of layer 'fc' under 'svd' has 0.4 of its 16 weights, the lowest has 8"
    ):
        rank_by_ratio(spec, "svd", 0.4)
    assert rank_by_ratio(spec, "svd", 0.5) == (1,)


def test_ratios_are_not_lost_to_rounding() -> None:
    """0.58 * 100 is 57.99999999999999, and 58 are the weights at rank 2."""
    assert rank_by_ratio(layer_spec(nn.Linear(4, 25)), "svd", 0.58) == (2,)
