"""Random layers and random rearrangements of channels, compiled, against torch."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from backends.torch_reference import reference_output
from backends.tvm import compile_module

FEW = settings(max_examples=12, derandomize=True)


def check(module, shape):
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(shape)
    compiled = compile_module(module, x)
    expected, output = reference_output(module, x), compiled.run(x.numpy())
    assert compiled.fallbacks == {}
    assert output.shape == expected.shape
    assert np.abs(output - expected).max() <= 1e-5 * np.abs(expected).max()


@st.composite
def convolutions(draw):
    """A convolution and the shape of an input that it fits."""
    kernel = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    padding = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    dilation = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    channels, outputs = (groups * draw(st.integers(1, 40 // groups)) for _ in range(2))
    layer = nn.Conv2d(
        channels,
        outputs,
        kernel,
        stride=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
    )
    size = [
        max(1, d * (k - 1) + 1 - 2 * p) + draw(st.integers(0, 20))
        for k, p, d in zip(kernel, padding, dilation, strict=True)
    ]
    return layer, (draw(st.integers(1, 2)), channels, *size)


@FEW
@given(convolutions())
def test_any_convolution(case):
    check(*case)


class Rearranged(nn.Module):
    """A convolution, a sequence of channel moves, and a convolution that reads what they leave."""

    def __init__(self, channels, moves):
        super().__init__()
        self.moves = moves
        self.first = nn.Conv2d(3, channels, 1)
        left = self.rearrange(torch.zeros(1, channels, 4, 4)).shape[1]
        self.last = nn.Conv2d(left, 5, 3)
        self.depthwise = nn.Conv2d(left, left, 3, groups=left)

    def rearrange(self, x):
        kept = x
        for move in self.moves:
            x = move(x, kept)
        return x

    def forward(self, x):
        x = self.rearrange(self.first(x))
        return torch.cat([self.last(x), self.depthwise(x)], 1)


def shuffle(x):
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).flatten(1, 2) if c % 2 == 0 else x


MOVES = {
    "first half": lambda x, _: x[:, : x.shape[1] // 2 + 1],
    "every third": lambda x, _: x[:, ::3],
    "shuffle": lambda x, _: shuffle(x),
    "backwards": lambda x, _: torch.index_select(x, 1, torch.tensor(range(x.shape[1])[::-1])),
    "twice": lambda x, _: torch.cat([x, x], 1),
    "with the input": lambda x, kept: torch.cat([kept, x], 1),
    "zeros": lambda x, _: F.pad(x, (0, 0, 0, 0, 3, 2)),
    "relu": lambda x, _: F.relu(x),
    "plus itself shuffled": lambda x, _: x + shuffle(x),
}


@FEW
@given(st.integers(2, 40), st.lists(st.sampled_from(sorted(MOVES)), min_size=2, max_size=5))
def test_any_rearrangement_of_channels(channels, moves):
    check(Rearranged(channels, [MOVES[name] for name in moves]), (1, 3, 4, 4))
