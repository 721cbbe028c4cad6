"""The arithmetic of sparsity, masks and criteria."""

import json
from math import nan

import numpy as np
import pytest
import torch
from torch import nn

from automl.compression.sparsity import (
    CRITERIA,
    Criterion,
    atom_indices,
    global_sparsity,
    magnitude,
    mask,
    score_weights,
    taylor,
)
from automl.testing.sparsity import CriterionConformance, PatternConformance
from search_spaces.errors import InputError
from search_spaces.policy import CompressionPolicy, LayerPolicy
from search_spaces.sparsity import Sparsity, sizes, stored


class TestElement(PatternConformance):
    pattern = "element"


class TestRow(PatternConformance):
    pattern = "row"


class TestColumn(PatternConformance):
    pattern = "column"


class TestKernel(PatternConformance):
    pattern = "kernel"
    shapes = ((8, 4, 3, 3), (6, 4, 5), (4, 8, 1, 1), (16, 1, 3, 3), (3, 2, 3, 3, 3))
    misfits = ((8, 16),)


class TestFilter(PatternConformance):
    pattern = "filter"


class TestBlock(PatternConformance):
    pattern = "block:2x4"
    shapes = ((8, 16), (4, 4, 3, 3), (2, 4, 1))
    misfits = ((7, 16), (8, 6), (4, 1, 3, 3))


class TestNOfM(PatternConformance):
    pattern = "2:4"
    shapes = ((8, 16), (1, 4), (8, 4, 3, 3), (6, 8, 5))
    misfits = ((8, 6), (8, 1, 3, 3))


class TestOneOfThree(PatternConformance):
    pattern = "1:3"  # 1/3 is no float
    shapes = ((5, 9), (7, 3, 3, 3))
    misfits = ((8, 4),)


class TestAllOfM(PatternConformance):
    pattern = "4:4"
    shapes = ((8, 16),)
    misfits = ((8, 6),)


class TestMagnitude(CriterionConformance):
    name = "magnitude"


class TestTaylor(CriterionConformance):
    name = "taylor"


def test_the_kit_of_criteria_catches_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(CriterionConformance):
        name = "wrong"

    monkeypatch.setitem(CRITERIA, "wrong", Criterion(lambda weight, gradient: weight.detach().double()))
    for check in (Wrong().test_scores_are_like_the_weight, Wrong().test_the_sign_does_not_matter):
        with pytest.raises(AssertionError):
            check()
    monkeypatch.setitem(CRITERIA, "wrong", Criterion(lambda weight, gradient: weight.square()))
    for check in (Wrong().test_scores_are_like_the_weight, Wrong().test_nothing_else_is_touched):
        with pytest.raises(AssertionError):
            check()


def test_atoms_are_where_the_pattern_says() -> None:
    """Written down by hand for a convolution of 2 output and 2 input channels with kernels of 2 x 3."""
    shape = (2, 2, 2, 3)

    def atoms(pattern: str) -> list[list[int]]:
        return atom_indices(shape, Sparsity(pattern, 0.5)).flatten(0, 1).tolist()

    assert atoms("element") == [[place] for place in range(24)]
    assert atoms("row")[:3] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert atoms("column")[:4] == [[0, 3], [1, 4], [2, 5], [6, 9]]
    assert atoms("kernel") == [[*range(start, start + 6)] for start in (0, 6, 12, 18)]
    assert atoms("filter") == [[*range(12)], [*range(12, 24)]]
    assert atoms("block:2x6") == [[*range(6), *range(12, 18)], [*range(6, 12), *range(18, 24)]]
    assert atoms("1:2")[:4] == [[0], [6], [1], [7]]  # both input channels of one kernel place


def test_halves_become_one_more_zero() -> None:
    assert [Sparsity("element", 0.5).atoms((1, total))[1] for total in (3, 5, 7, 9)] == [2, 3, 4, 5]
    assert Sparsity("element", 0.29).atoms((10, 10)) == (100, 29)  # 0.29 * 100 is 28.999999999999996
    assert Sparsity("filter", 0.4).atoms((1, 4)) == (1, 0)


def test_n_of_m_counts_are_exact_for_many_weights() -> None:
    shape = (1 << 20, 3 << 20)
    assert Sparsity("1:3", 1 - 1 / 3 + 9e-10).nonzeros(shape) == (1 << 20) * (1 << 20)


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, nan, float("inf"), "0.5", None])
def test_a_share_out_of_range_is_refused(share: object) -> None:
    with pytest.raises(InputError, match=r"in \[0, 1\), got"):
        Sparsity("element", share)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_shares() -> None:
    assert Sparsity("element", np.float32(0.5)).nonzeros((4, 4)) == 8  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pattern", "share", "says"),
    [
        ("elements", 0.5, "did you mean 'element'"),
        ("block:0x4", 0.5, "'block:RxC' or 'N:M'"),
        ("block:4", 0.5, "'block:RxC' or 'N:M'"),
        ("02:4", 0.5, "'block:RxC' or 'N:M'"),
        ("4:2", 0.5, "N is from 1 to M"),
        ("0:4", 0.5, "N is from 1 to M"),
        ("2:4", 0.6, "has the sparsity 0.5, got 0.6; leave it out"),
    ],
)
def test_a_pattern_that_is_none_is_refused(pattern: str, share: float, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Sparsity(pattern, share)


@pytest.mark.parametrize(
    ("pattern", "share", "shape", "says"),
    [
        ("element", 0.99, (4, 4), "leaves none of the 16 'element' atoms"),
        ("filter", 0.5, (1, 4), "leaves none of the 1 'filter' atoms"),
        ("kernel", 0.5, (4, 4), "a linear layer has no kernels"),
        ("block:3x2", 0.5, (4, 4), "do not divide a weight matrix of 4x4"),
        ("2:4", 0.5, (16, 1, 3, 3), "for each output channel, got 1"),
    ],
)
def test_what_empties_a_layer_or_does_not_fit_it_is_refused(
    pattern: str, share: float, shape: tuple[int, ...], says: str
) -> None:
    sparsity = Sparsity(pattern, share)
    with pytest.raises(InputError, match=says):
        sparsity.atoms(shape)
    with pytest.raises(InputError, match=says):
        mask(torch.ones(shape), sparsity)


def test_the_smallest_form_is_named() -> None:
    shape = (64, 64)
    found = {
        (pattern, share, bits): stored(shape, bits, Sparsity(pattern, share)).form
        for pattern, share, bits in [
            ("element", 0.0, 32),
            ("element", 0.02, 8),
            ("element", 0.5, 8),
            ("element", 0.9, 8),
            ("2:4", 0.5, 8),
            ("1:4", 0.75, 8),
            ("4:8", 0.5, 8),
            ("filter", 0.5, 1),
        ]
    }
    assert list(found.values()) == ["dense", "dense", "bitmap", "run_length", "n:m", "n:m", "bitmap", "bitmap"]


def test_numbers_without_a_zero_need_an_index() -> None:
    """Half of the binary weights are zero: two bits for three values, not one."""
    shape, half = (64, 64), Sparsity("element", 0.5)
    assert "dense" not in sizes(shape, 1, half, has_zero=False)
    assert stored(shape, 1, half, has_zero=False).bits == 64 * 64 * 3 // 2
    assert stored(shape, 1, half).form == "dense"
    assert stored(shape, 1, Sparsity("element", 0.0), has_zero=False).form == "dense"


def test_more_zeros_never_take_more_room() -> None:
    for pattern in ("element", "row", "column", "filter", "block:4x4"):
        for bits in (1, 2, 8, 32):
            taken = [stored((64, 64), bits, Sparsity(pattern, share / 64)).bits for share in range(64)]
            assert taken == sorted(taken, reverse=True), (pattern, bits)


def test_taylor_is_the_square_of_the_first_order_change() -> None:
    weight, gradient = torch.tensor([[2.0, -3.0]]), torch.tensor([[-0.5, 0.0]])
    assert taylor(weight, gradient).tolist() == [[1.0, 0.0]]
    with pytest.raises(InputError, match="shape of its weight"):
        taylor(weight, gradient[0])


def test_scores_with_gradients_average_over_batches_and_leave_the_network_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    for parameter in model.parameters():
        parameter.data.normal_(generator=generator)
    batches = [(torch.randn(6, 5, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])) for _ in range(3)]
    weights = {"first": model[0].weight, "last": model[2].weight}
    expected = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}
    for inputs, targets in batches:
        model.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        for name, weight in weights.items():
            expected[name] += taylor(weight, weight.grad) / 3  # type: ignore[arg-type]
    model.zero_grad()
    with torch.no_grad():  # it takes gradients all the same
        found = score_weights("taylor", model.requires_grad_(False), weights, batches)
    for name in weights:
        torch.testing.assert_close(found[name], expected[name])
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(InputError, match="at least one batch"):
        score_weights("taylor", model, weights)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    found = score_weights("magnitude", model, weights)
    assert torch.equal(found["last"], magnitude(weights["last"]))
    with pytest.raises(InputError, match="no criterion 'taylr' of sparsity; did you mean 'taylor'"):
        score_weights("taylr", model, weights)


def test_an_earlier_mask_that_leaves_too_little_is_refused() -> None:
    scores = torch.arange(8.0).reshape(2, 4)
    with pytest.raises(InputError, match="zeros do not come back"):
        mask(scores, Sparsity("element", 0.25), within=mask(scores, Sparsity("element", 0.5)))
    with pytest.raises(InputError, match=r"like its scores \[2, 4\], got \[8\]"):
        mask(scores, Sparsity("element", 0.5), within=torch.ones(8, dtype=torch.bool))


def test_scores_that_are_none_are_refused() -> None:
    for wrong in (-1.0, nan):
        with pytest.raises(InputError, match="at least 0"):
            mask(torch.full((2, 2), wrong), Sparsity("element", 0.5))
        with pytest.raises(InputError, match="layer 'a': the scores"):
            global_sparsity({"a": torch.full((2, 2), wrong)}, "element", 0.5)


def test_layers_that_compete_lose_what_matters_least_overall() -> None:
    generator = torch.Generator().manual_seed(0)
    small, large = (torch.randn(shape, generator=generator) for shape in ((8, 8), (8, 4, 3, 3)))
    weights = {"small": 0.1 * small, "large": large}
    scores = {name: magnitude(weight) for name, weight in weights.items()}
    for pattern in ("element", "filter", "row"):
        found = global_sparsity(scores, pattern, 0.15)
        assert found["small"].share > found["large"].share
        gone = sum(weight.numel() - found[name].nonzeros(weight.shape) for name, weight in weights.items())
        most = max(atom_indices(weight.shape, found[name]).shape[-1] for name, weight in weights.items())
        assert 0 <= 0.15 * (64 + 288) - gone + 0.5 <= most
    assert global_sparsity({}, "element", 0.5) == {}


def test_of_each_layer_something_stays() -> None:
    scores = {"small": torch.full((2, 2), 1e-6), "large": torch.ones(8, 8)}
    found = global_sparsity(scores, "element", 0.9)
    assert found["small"].nonzeros((2, 2)) == 1
    wrong = [("2:4", 0.5, "same share"), ("element", 0.99, "lower it"), ("kernel", 0.5, "layer 'small'")]
    for pattern, share, says in wrong:
        with pytest.raises(InputError, match=says):
            global_sparsity(scores, pattern, share)


def test_a_policy_speaks_of_zeros_in_json() -> None:
    policy = CompressionPolicy({"a": LayerPolicy(sparsity=0.5, pattern="block:2x4"), "b": LayerPolicy(pattern="2:4")})
    assert json.loads(policy.to_json())["layers"]["b"] == {"pattern": "2:4"}
    again = CompressionPolicy.from_json(policy.to_json())
    assert again.layers["b"].zeros == Sparsity("2:4", 0.5)
    assert again.layers["a"].zeros == Sparsity("block:2x4", 0.5)


def test_large_atoms_are_compared_with_small_ones_by_their_weights() -> None:
    """Filters of many small weights go before those of few larger ones, though they add up to more."""
    scores = {"wide": torch.full((4, 100), 1.0), "narrow": torch.full((4, 2), 5.0)}
    found = global_sparsity(scores, "filter", 0.5)
    assert (found["wide"].share, found["narrow"].share) == (0.5, 0.0)
