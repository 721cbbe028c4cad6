"""Quantisers in fine-tuning: the gradients of their papers, and numbers that stay the same when they are folded."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from automl.compression.quantisation import (
    LearnedActivationStep,
    LearnedClip,
    LearnedWeightStep,
    StraightThrough,
    calibrate,
    quantise,
)
from search_spaces.errors import InputError
from search_spaces.number_formats import SCHEMES, NumberFormat


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradient(module: nn.Module, x: Tensor, upstream: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    module(x).backward(upstream)
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("scheme", list(SCHEMES))
@pytest.mark.parametrize("masked", [False, True])
def test_straight_through_weights(scheme: str, masked: bool) -> None:
    """What `quantise` gives, bit for bit; gradients pass to the weights that stay."""
    weight, upstream = normal(4, 3, 3, 3) * 0.1, normal(4, 3, 3, 3, seed=1)
    mask = normal(4, 3, 3, 3, seed=2) > 0 if masked else None
    format = NumberFormat(SCHEMES[scheme].least_bits, scheme)
    module = StraightThrough(format, mask)
    found = quantise(weight, format, mask=mask)
    assert torch.equal(module(weight), found.values)
    assert torch.equal(module.fold(weight).values, found.values)
    passed = gradient(module, weight, upstream)
    if mask is not None:
        assert not passed[~mask].any()
    if scheme != "dorefa":
        assert torch.equal(passed, upstream if mask is None else upstream * mask)


def test_gradients_of_dorefa_pass_through_tanh() -> None:
    """d/dw of tanh(w) / max |tanh(w)|, by finite differences, times the scale."""
    weight, upstream = normal(1, 6), normal(1, 6, seed=1)
    format = NumberFormat(3, "dorefa")
    passed = gradient(StraightThrough(format), weight, upstream)
    scale = float(quantise(weight, format).side["scale"])

    def squashed(w: Tensor) -> float:
        return float((w.double().tanh() / w.double().tanh().abs().max() * upstream).sum()) * scale

    for place in range(6):
        step = torch.zeros(1, 6, dtype=torch.float64)
        step[0, place] = 1e-5
        assert float(passed[0, place]) == pytest.approx(
            (squashed(weight + step) - squashed(weight - step)) / 2e-5, rel=1e-3, abs=1e-5
        )


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:5"])
def test_the_gradient_of_a_learned_step_is_that_of_lsq(granularity: str) -> None:
    """Equation 3 of the paper: round(v/s) - v/s inside, the last level outside, times 1 / sqrt(N Q)."""
    weight, upstream = normal(4, 9), normal(4, 9, seed=1)
    format = NumberFormat(3, "symmetric", granularity)
    module = LearnedWeightStep(weight, format)
    passed = gradient(module, weight, upstream)
    groups = {"tensor": [list(range(36))], "channel": torch.arange(36).reshape(4, 9).tolist()}
    groups["group:5"] = [row[part] for row in groups["channel"] for part in (slice(5), slice(5, 9))]
    size = {"tensor": 36, "channel": 9, "group:5": 5}[granularity]
    steps = module.step.detach().flatten().tolist()
    assert module.step.grad is not None
    for members, step, found in zip(groups[granularity], steps, module.step.grad.flatten().tolist(), strict=True):
        expected = 0.0
        for place in members:
            v, up = float(weight.flatten()[place]) / step, float(upstream.flatten()[place])
            inside = abs(v) < 3
            expected += up * (round(v) - v if inside else math.copysign(3, v))
            assert float(passed.flatten()[place]) == pytest.approx(up if inside else 0.0, rel=1e-5)
        assert found == pytest.approx(expected / math.sqrt(size * 3), rel=1e-4, abs=1e-5)


def test_learned_steps_of_weights_start_as_in_the_paper_and_fold() -> None:
    weight = normal(4, 9)
    mask = normal(4, 9, seed=2) > 0
    mask[3] = False
    module = LearnedWeightStep(weight, NumberFormat(4), mask)
    expected = 2 * weight[0][mask[0]].abs().mean() / 7**0.5
    assert float(module.step.detach()[0]) == pytest.approx(float(expected), rel=1e-6)
    found = module.fold(weight)
    assert torch.equal(found.values, module(weight))
    assert not found.values[~mask].any()
    assert int(found.codes.min()) >= 1
    assert int(found.codes.max()) <= 15
    with torch.no_grad():
        module.step.mul_(-0.5)  # an optimiser may step across zero
    assert torch.equal(module.fold(weight).values, module(weight))
    assert (module.fold(weight).side["scale"] > 0).all()


def test_a_learned_step_finds_a_better_step() -> None:
    """Gradient descent on the squared error ends below the error of the whole range, and near that of the best."""
    weight = normal(1, 1000)
    format = NumberFormat(3, "symmetric", "tensor")
    module = LearnedWeightStep(weight, format)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.04)
    for _ in range(120):
        optimiser.zero_grad()
        (module(weight) - weight).square().sum().backward()
        optimiser.step()

    def error(values: Tensor) -> float:
        return float((values - weight).square().sum().detach())

    assert error(module(weight)) < 0.6 * error(quantise(weight, format).values)
    assert error(module(weight)) < 1.02 * error(quantise(weight, format, method="mse").values)


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_learned_steps_of_activations_fold(scheme: str) -> None:
    x = normal(8, 3, 4, 4) + 0.5
    start = calibrate(x, NumberFormat(4, scheme, "tensor"))
    module = LearnedActivationStep(start)
    assert torch.equal(module(x), start(x))
    with torch.no_grad():
        module.step.mul_(0.6)
    assert torch.equal(module.fold()(x), module(x))
    assert not torch.equal(module(x), start(x))
    module(x).sum().backward()
    assert module.step.grad is not None
    assert module.step.grad.abs() > 0


def test_the_gradient_of_a_learned_clip_is_that_of_pact() -> None:
    """1 where the value is beyond the bound, 0 elsewhere; to the values what lies between zero and the bound."""
    start = calibrate(torch.tensor([0.0, 2.0]), NumberFormat(2, "asymmetric", "tensor"))
    module = LearnedClip(start)
    assert float(module.bound.detach()) == pytest.approx(2.0)
    x, upstream = torch.tensor([-1.0, 0.3, 1.9, 2.5, 7.0]), torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    assert gradient(module, x, upstream).tolist() == [0, 2, 4, 0, 0]
    assert module.bound.grad is not None
    assert float(module.bound.grad) == 24
    assert torch.equal(module.fold()(x), module(x))
    assert len(module(torch.linspace(0, 3, 100)).unique()) == 4


def test_what_cannot_be_learned_is_refused() -> None:
    with pytest.raises(InputError, match="for the scheme 'symmetric'"):
        LearnedWeightStep(normal(2, 2), NumberFormat(2, "ternary"))
    with pytest.raises(InputError, match="equally spaced"):
        LearnedActivationStep(calibrate(normal(9), NumberFormat(4, "power_of_two", "tensor")))
    with pytest.raises(InputError, match="below zero"):
        LearnedClip(calibrate(normal(9), NumberFormat(4, "asymmetric", "tensor")))


def test_a_network_is_fine_tuned_and_folded() -> None:
    """At 2 bits: the loss falls, masked weights stay zero, and the plain network computes what the trained one did."""
    x = normal(64, 8)
    y = (x[:, :1] * x[:, 1:2]).tanh()
    torch.manual_seed(0)
    hidden, last = nn.Linear(8, 32), nn.Linear(32, 1)
    mask = normal(32, 8, seed=3) > -0.5
    learned = LearnedWeightStep(hidden.weight, NumberFormat(3), mask)
    through = StraightThrough(NumberFormat(2, "ternary", "tensor"))
    parametrize.register_parametrization(hidden, "weight", learned)
    parametrize.register_parametrization(last, "weight", through)
    reading = LearnedActivationStep(calibrate(x, NumberFormat(6, "symmetric", "tensor")))
    between = LearnedClip(calibrate(hidden(x).relu(), NumberFormat(3, "asymmetric", "tensor")))
    network = nn.Sequential(reading, hidden, nn.ReLU(), between, last)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    losses = []
    for _ in range(150):
        optimiser.zero_grad()
        loss = (network(x) - y).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    state = network.state_dict()
    network.load_state_dict(state)
    trained = network(x)
    for layer, module in ((hidden, learned), (last, through)):
        found = module.fold(layer.parametrizations.weight.original)  # type: ignore[union-attr]
        parametrize.remove_parametrizations(layer, "weight")
        assert torch.equal(layer.weight, found.values)
    assert not hidden.weight[~mask].any()
    plain = nn.Sequential(reading.fold(), hidden, nn.ReLU(), between.fold(), last)
    assert torch.equal(plain(x), trained)
