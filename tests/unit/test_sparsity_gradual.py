"""The cubic schedule, and masks that follow it."""

import pytest
import torch
from torch import Tensor

from automl.compression.sparsity import GradualSparsity, cubic_share, magnitude, mask, taylor
from search_spaces.errors import InputError
from search_spaces.sparsity import Sparsity

TARGETS = [
    Sparsity("element", 0.8),
    Sparsity("column", 0.5),
    Sparsity("block:2x4", 0.4),
    Sparsity("1:4", 0.75),
]


def weights(step: int) -> Tensor:
    return torch.randn(12, 16, generator=torch.Generator().manual_seed(step))


def all_of(weight: Tensor) -> Tensor:
    return torch.ones_like(weight, dtype=torch.bool)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_zeros_follow_the_schedule_and_stay(target: Sparsity) -> None:
    schedule, found = GradualSparsity(steps=10, every=2), all_of(weights(0))
    counts = []
    for step in range(14):
        if not schedule.due(step):
            continue
        now = schedule.grow(found, target, step, weights(step), None)
        assert not (now & ~found).any()
        found = now
        counts.append((step, int(found.sum())))
    assert [step for step, _ in counts] == [0, 2, 4, 6, 8, 10]
    assert counts[-1][1] == target.nonzeros((12, 16))
    if target.pattern == "1:4":  # window by window, as near to the schedule as can be
        assert [left / 48 for _, left in counts] == [4, 3, 2, 1, 1, 1]
        return
    for step, left in counts:
        share = target.share * (1 - (1 - step / 10) ** 3)
        assert left == Sparsity(target.pattern, share).nonzeros((12, 16))


def test_of_the_weights_that_are_left_those_with_the_least_score_go() -> None:
    target, schedule = Sparsity("element", 0.5), GradualSparsity(steps=4, every=1)
    first = schedule.grow(all_of(weights(0)), target, 1, weights(0), None)
    now = Sparsity("element", cubic_share(0.0, 0.5, 1, 4))
    assert torch.equal(first, mask(magnitude(weights(0)), now))
    second = schedule.grow(first, target, 4, weights(1), None)
    left = weights(1).abs().masked_fill(~first, -1.0)
    assert torch.equal(second, left >= left.flatten().sort().values[96])
    gradient = weights(2)
    scored = GradualSparsity(criterion="taylor").grow(all_of(gradient), target, 0, weights(1), gradient)
    assert torch.equal(scored, mask(taylor(weights(1), gradient), target))


def test_without_steps_it_is_one_shot_and_what_is_sparse_already_stays() -> None:
    target, schedule = Sparsity("element", 0.8), GradualSparsity()
    found = schedule.grow(all_of(weights(0)), target, 0, weights(0), None)
    assert torch.equal(found, mask(magnitude(weights(0)), target))
    assert schedule.grow(found, target, 7, weights(1), None) is found


def test_it_may_start_from_a_share() -> None:
    found = GradualSparsity(steps=3, start=0.25).grow(all_of(weights(0)), TARGETS[0], 0, weights(0), None)
    assert int((~found).sum()) == 48


def test_the_last_step_counts_though_it_is_not_due() -> None:
    schedule = GradualSparsity(steps=7, every=100)
    assert [step for step in range(300) if schedule.due(step)] == [0, 7]


def test_what_cannot_be_is_refused() -> None:
    wrong: list[tuple[dict[str, object], str]] = [
        ({"steps": -1}, "at least 0 steps"),
        ({"every": 0}, "at least 1"),
        ({"start": 1.0}, "rises from a share"),
        ({"criterion": "magnitud"}, "did you mean 'magnitude'"),
    ]
    for arguments, says in wrong:
        with pytest.raises(InputError, match=says):
            GradualSparsity(**arguments)  # type: ignore[arg-type]
    weight = weights(0)
    with pytest.raises(InputError, match="rises from a share"):
        GradualSparsity(steps=1, start=0.9).grow(all_of(weight), TARGETS[0], 0, weight, None)
    with pytest.raises(InputError, match="blocks of 5x3"):
        GradualSparsity().grow(all_of(weight), Sparsity("block:5x3", 0.5), 0, weight, None)
    with pytest.raises(InputError, match="'taylor' needs gradients"):
        GradualSparsity(criterion="taylor").grow(all_of(weight), TARGETS[0], 0, weight, None)
    with pytest.raises(InputError, match="NaN"):
        GradualSparsity().grow(all_of(weight), TARGETS[0], 0, torch.full_like(weight, torch.nan), None)


def test_shares_out_of_range_are_refused() -> None:
    for start, final, steps in [(0.5, 0.4, 1), (-0.1, 0.5, 1), (0.0, 1.0, 1), (0.0, 0.5, -1)]:
        with pytest.raises(InputError):
            cubic_share(start, final, 0, steps)
