"""The cubic schedule, and masks that follow it while a network is trained."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from automl.compression.sparsity import GradualMasks, cubic_share, magnitude, mask
from search_spaces.errors import InputError
from search_spaces.sparsity import Sparsity


def network(seed: int = 0) -> tuple[nn.Module, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model, {"0": model[0].weight, "2": model[2].weight}


def train(model: nn.Module, masks: GradualMasks, steps: range, optimizer: Optimizer) -> list[dict[str, int]]:
    """Zeros of each layer after each step."""
    counts = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(8, 12, generator=generator)).square().mean().backward()
        optimizer.step()
        masks.update(step)
        counts.append({name: int((model.get_parameter(f"{name}.weight") == 0).sum()) for name in masks.masks})
    return counts


def sgd(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)


TARGETS = {"0": Sparsity("element", 0.8), "2": Sparsity("column", 0.5)}


def test_zeros_follow_the_schedule_and_stay() -> None:
    model, weights = network()
    masks = GradualMasks(weights, TARGETS, steps=10, every=2)
    optimizer, before = sgd(model), {name: found.clone() for name, found in masks.masks.items()}
    for step in range(1, 14):
        (counts,) = train(model, masks, range(step, step + 1), optimizer)
        due = min(step - step % 2, 10)
        for name, target in TARGETS.items():
            now = Sparsity(target.pattern, cubic_share(0.0, target.share, due, 10))
            assert counts[name] == weights[name].numel() - now.nonzeros(weights[name].shape)
            assert not (masks.masks[name] & ~before[name]).any()
        assert masks.done == (step >= 10)
        before = {name: found.clone() for name, found in masks.masks.items()}


def test_masks_are_those_of_the_weights_when_they_are_chosen() -> None:
    model, weights = network()
    masks = GradualMasks(weights, TARGETS, steps=5, every=5)
    optimizer = sgd(model)
    train(model, masks, range(1, 5), optimizer)
    assert all(found.all() for found in masks.masks.values())
    optimizer.step()
    expected = {name: mask(magnitude(weights[name]), target) for name, target in TARGETS.items()}
    masks.update(5)
    assert all(torch.equal(masks.masks[name], expected[name]) for name in TARGETS)


def test_without_steps_it_is_one_shot() -> None:
    _, weights = network()
    expected = {name: mask(magnitude(weights[name]), target) for name, target in TARGETS.items()}
    masks = GradualMasks(weights, TARGETS, steps=0)
    assert masks.done
    for name, found in expected.items():
        assert torch.equal(masks.masks[name], found)
        assert torch.equal(weights[name] != 0, found)


def test_masks_that_are_there_already_are_kept_in_force() -> None:
    model, weights = network()
    chosen = {name: mask(magnitude(torch.rand_like(weights[name])), target) for name, target in TARGETS.items()}
    masks = GradualMasks(weights, TARGETS, steps=0, masks=chosen)
    train(model, masks, range(1, 4), sgd(model))
    assert all(torch.equal(weights[name] != 0, found) for name, found in chosen.items())


def test_the_last_step_counts_though_it_is_not_due_and_later_ones_change_nothing() -> None:
    model, weights = network()
    masks = GradualMasks(weights, TARGETS, steps=7, every=100)
    optimizer = sgd(model)
    train(model, masks, range(1, 8), optimizer)
    final = {name: found.clone() for name, found in masks.masks.items()}
    assert all(int(final[name].sum()) == target.nonzeros(final[name].shape) for name, target in TARGETS.items())
    train(model, masks, range(100, 102), optimizer)
    assert all(torch.equal(masks.masks[name], final[name]) for name in final)


def test_n_of_m_goes_window_by_window() -> None:
    model, weights = network()
    masks = GradualMasks(weights, {"0": Sparsity("1:4", 0.75)}, steps=8, every=1)
    seen = []
    for step in range(1, 9):
        train(model, masks, range(step, step + 1), sgd(model))
        in_window = masks.masks["0"].reshape(-1, 4).sum(1)
        assert (in_window == in_window[0]).all()
        seen.append(int(in_window[0]))
    assert seen == sorted(seen, reverse=True)
    assert set(seen) == {1, 2, 3}
    assert seen[-1] == 1


def test_after_a_kill_it_goes_on_as_if_nothing_had_been() -> None:
    straight, weights = network()
    masks = GradualMasks(weights, TARGETS, steps=12, every=3)
    optimizer = sgd(straight)
    train(straight, masks, range(1, 8), optimizer)
    saved = {name: value.clone() for name, value in masks.state_dict().items()}
    model_state = {name: value.clone() for name, value in straight.state_dict().items()}
    optimizer_state = deepcopy(optimizer.state_dict())

    resumed, others = network(seed=1)
    resumed.load_state_dict(model_state)
    again = GradualMasks(others, TARGETS, steps=12, every=3)
    again.load_state_dict(saved)
    other_optimizer = sgd(resumed)
    other_optimizer.load_state_dict(optimizer_state)
    train(resumed, again, range(8, 14), other_optimizer)
    train(straight, masks, range(8, 14), optimizer)
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert again.done

    with pytest.raises(InputError, match="of other layers"):
        GradualMasks(others, {"0": TARGETS["0"]}, steps=1).load_state_dict(saved)


def test_taylor_reads_the_gradients_of_the_last_step() -> None:
    model, weights = network()
    with pytest.raises(InputError, match="layer '0': the criterion 'taylor' needs gradients"):
        GradualMasks(weights, TARGETS, steps=0, criterion="taylor")
    masks = GradualMasks(weights, TARGETS, steps=2, every=1, criterion="taylor")
    train(model, masks, range(1, 3), sgd(model))
    assert all(int(masks.masks[name].sum()) == target.nonzeros(weights[name].shape) for name, target in TARGETS.items())


def test_what_cannot_be_is_refused_and_changes_nothing() -> None:
    _, weights = network()
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    wrong: list[tuple[dict[str, object], str]] = [
        ({"steps": -1}, "at least 0 steps"),
        ({"every": 0}, "at least 1"),
        ({"start": 0.9}, "rises from a share"),
        ({"criterion": "magnitud"}, "did you mean 'magnitude'"),
        ({"targets": {"1": TARGETS["0"]}}, "no weights of a layer '1'"),
        ({"targets": {"0": TARGETS["0"], "2": Sparsity("block:3x3", 0.5)}}, "layer '2': blocks of 3x3"),
    ]
    for arguments, says in wrong:
        with pytest.raises(InputError, match=says):
            GradualMasks(weights, **{"targets": TARGETS, "steps": 0, **arguments})  # type: ignore[arg-type]
    weights["2"].data[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"layer '2'.*NaN"):
        GradualMasks(weights, TARGETS, steps=0)
    assert torch.equal(weights["0"], before["0"])


def test_shares_out_of_range_are_refused() -> None:
    for start, final, steps in [(0.5, 0.4, 1), (-0.1, 0.5, 1), (0.0, 1.0, 1), (0.0, 0.5, -1)]:
        with pytest.raises(InputError):
            cubic_share(start, final, 0, steps)
