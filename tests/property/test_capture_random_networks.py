"""Random small networks: whatever moves the channels, the pruned network equals the zeroed one."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from capture_nets import random_units, randomised, relative_error, zeroed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from search_spaces.capture import PrunableNetwork


@dataclass(frozen=True)
class Step:
    """One operation on the latest tensor; `a` and `b` choose among what fits."""

    kind: str
    a: int
    b: int


KINDS = ("conv", "grouped", "depthwise", "norm", "relu", "add", "add_padded", "cat", "chunk", "shuffle")
KINDS += ("slice", "roll", "flip", "excite", "mask", "gather", "pool", "tokens")
steps = st.lists(
    st.builds(Step, st.sampled_from(KINDS), st.integers(0, 30), st.integers(0, 30)), min_size=2, max_size=10
)


def divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


class RandomNetwork(nn.Module):
    def __init__(self, plan: list[Step]) -> None:
        super().__init__()
        self.plan = plan
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleDict()
        x = self.run(torch.zeros(2, 3, 6, 6), build=True)
        self.head = nn.Linear(x.shape[1], 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.run(x)
        return self.head(x.mean((2, 3)))

    def run(self, x: Tensor, build: bool = False) -> Tensor:
        past = [self.stem(x)]
        for index, step in enumerate(self.plan):
            if build:
                self.build(str(index), step, past[-1].shape[1])
            past.append(self.step(str(index), step, past))
        return F.relu(past[-1]) + 0.1 * past[-1]

    def build(self, name: str, step: Step, width: int) -> None:
        if step.kind == "conv":
            self.layers[name] = nn.Conv2d(width, 2 + step.a % 9, 1 + 2 * (step.b % 2), padding=step.b % 2)
        elif step.kind == "grouped":
            groups = divisors(width)[step.a % len(divisors(width))]
            self.layers[name] = nn.Conv2d(width, groups * (1 + step.b % 3), 1, groups=groups)
        elif step.kind == "depthwise":
            self.layers[name] = nn.Conv2d(width, width * (1 + step.a % 2), 3, padding=1, groups=width)
        elif step.kind == "norm":
            self.layers[name] = nn.BatchNorm2d(width)
        elif step.kind == "excite":
            self.layers[name] = nn.Sequential(nn.Linear(width, 3), nn.ReLU(), nn.Linear(3, width), nn.Sigmoid())
        elif step.kind == "mask":
            self.layers[name] = nn.Conv2d(width, 1, 1)
        elif step.kind == "tokens":
            self.layers[name] = nn.Linear(width, width)

    def step(self, name: str, step: Step, past: list[Tensor]) -> Tensor:
        x, other = past[-1], past[step.a % len(past)]
        n, c, h, w = x.shape
        if name in self.layers and step.kind in ("conv", "grouped", "depthwise", "norm"):
            return self.layers[name](x)
        match step.kind:
            case "relu":
                return F.relu(x)
            case "add":
                same = [tensor for tensor in past if tensor.shape[1] == c]
                return x + same[step.a % len(same)]
            case "add_padded":
                small, large = sorted((x, other), key=lambda tensor: tensor.shape[1])
                missing = large.shape[1] - small.shape[1]
                before = step.b % (missing + 1)
                return large + F.pad(small, (0, 0, 0, 0, before, missing - before))
            case "cat":
                return torch.cat([x, other], 1) if c + other.shape[1] <= 40 else x
            case "chunk":
                return x.chunk(2, 1)[step.a % min(2, c)]
            case "shuffle":
                groups = divisors(c)[step.a % len(divisors(c))]
                return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)
            case "slice":
                start = step.a % c
                return x[:, start : start + 1 + step.b]
            case "roll":
                return torch.roll(x, step.a % c, 1)
            case "flip":
                return x.flip(1)
            case "excite":
                return x * self.layers[name](x.mean((2, 3)))[:, :, None, None]
            case "mask":
                return x * torch.sigmoid(self.layers[name](x))
            case "gather":
                return x[:, :: 1 + step.a % 2]
            case "pool":
                return F.avg_pool2d(x, 3, 1, 1)
            case "tokens":
                return self.layers[name](x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(n, c, h, w)
        return x


def check(plan: list[Step], seed: int) -> None:
    torch.manual_seed(seed)
    model = randomised(RandomNetwork(plan), seed)
    x = torch.randn(2, 3, 6, 6)
    network = PrunableNetwork(model, x)
    # the rules themselves are right: the proof has nothing to refuse
    assert not [refusal for refusal in network.graph.refusals if "proof" in refusal.reason]
    kept = random_units(network, np.random.default_rng(seed))
    pruned = network.prune(kept)
    graph = network.graph.with_kept([len(kept[group.name]) for group in network.graph.groups])
    assert graph.params == sum(parameter.numel() for parameter in pruned.parameters())
    for layer in graph.layers:
        module = pruned.get_submodule(layer.name)
        assert tuple(module.weight.shape[:2]) == (layer.out_channels, layer.in_channels // layer.groups)
    model, pruned, x = model.double(), pruned.double(), x.double()
    with torch.no_grad():
        assert relative_error(pruned(x), zeroed(network, model, kept)(x)) < 1e-9


PLANS = {"plan": steps, "seed": st.integers(0, 100)}
OPTIONS = {"suppress_health_check": list(HealthCheck)}


@settings(max_examples=15, derandomize=True, **OPTIONS)
@given(**PLANS)
def test_random_network(plan: list[Step], seed: int) -> None:
    check(plan, seed)


@pytest.mark.slow
@settings(max_examples=300, **OPTIONS)
@given(**PLANS)
def test_many_random_networks(plan: list[Step], seed: int) -> None:
    check(plan, seed)
