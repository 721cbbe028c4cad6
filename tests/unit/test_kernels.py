"""Cropped kernels: in a policy, by arithmetic, in the network, and in what is saved of it."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from automl.compression import CompressionOptions, Compressor
from automl.compression.structure import build
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError
from search_spaces.policy import CompressionPolicy, LayerPolicy

IMAGE = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def network(**options: Any) -> PrunableNetwork:
    """A convolution of 7 x 7, a depthwise one of 5 x 5, dilated, and one of 1 x 1."""
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 8, 7, padding=3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 5, padding=4, dilation=2, groups=8, bias=False),
        nn.Conv2d(8, 6, 1, **options),
        nn.Flatten(),
        nn.Linear(6 * 36, 5),
    )
    return PrunableNetwork(nn.Sequential(*layers), IMAGE[:1])


def policy_of(**kernels: int) -> CompressionPolicy:
    return CompressionPolicy({name[1:]: LayerPolicy(kernel=kernel) for name, kernel in kernels.items()})


def compressed(policy: CompressionPolicy) -> nn.Module:
    return Compressor(network(), IMAGE, CompressionOptions()).apply(policy)


@pytest.mark.parametrize("first", [1, 3, 5, 7])
@pytest.mark.parametrize("second", [1, 3, 5])
def test_a_cropped_kernel_computes_as_one_whose_rim_is_zero(first: int, second: int) -> None:
    found = compressed(policy_of(_0=first, _3=second))
    whole = network().prune({})
    for name, kernel in (("0", first), ("3", second)):
        weight = whole.get_parameter(f"{name}.weight").data
        rim = (weight.shape[-1] - kernel) // 2
        mask = torch.zeros_like(weight)
        mask[..., rim : weight.shape[-1] - rim, rim : weight.shape[-1] - rim] = 1.0
        weight.mul_(mask)
        assert found.get_parameter(f"{name}.weight").shape[2:] == (kernel, kernel)
    torch.testing.assert_close(found(IMAGE), whole(IMAGE), rtol=1e-5, atol=1e-5)


def test_arithmetic_says_what_is_computed() -> None:
    policy = CompressionPolicy({**policy_of(_0=5, _3=3).layers, "0": LayerPolicy(kernel=5, keep=0.5)})
    graph = network().graph.apply(policy)
    module = compressed(policy)
    with FlopCounterMode(display=False) as counter:
        module(IMAGE[:1])
    assert counter.get_total_flops() == 2 * graph.macs
    assert sum(each.numel() for each in module.parameters()) == graph.params
    assert [layer.padding for layer in graph.layers[:2]] == [(2, 2), (2, 2)]


def test_a_cropped_kernel_goes_with_a_rank_zeros_and_bits() -> None:
    layer = LayerPolicy(kernel=3, rank=2, sparsity=0.5, weight_bits=4, activation_bits=8)
    policy = CompressionPolicy({"0": layer, "3": LayerPolicy(kernel=3, weight_bits=8)})
    found = Compressor(network(), IMAGE, CompressionOptions()).compress(policy)
    assert sum(each.numel() for each in found.module.parameters()) == found.graph.params
    assert found.module.get_parameter("0.0.weight").shape[2:] == (3, 3)
    saved = found.module.state_dict()
    again = build(network(), {}, policy.layers)
    again.load_state_dict(saved)
    torch.testing.assert_close(again(IMAGE), found.module(IMAGE))


def test_policies_with_kernels_are_read_back_and_others_are_written_as_before() -> None:
    policy = policy_of(_0=5)
    assert '"schema_version": 4' in policy.to_json()
    assert CompressionPolicy.from_json(policy.to_json()) == policy
    assert '"schema_version": 2' in CompressionPolicy.from_keep({"0": 0.5}).to_json()


@pytest.mark.parametrize(
    ("layer", "kernel", "said"),
    [
        ("0", 4, "layer '0': a kernel of 7 x 7 has no middle that is 4 wide"),
        ("0", 9, "layer '0': a kernel of 7 x 7 has no middle that is 9 wide"),
        ("6", 1, "layer '6' is no convolution and has no kernel to crop"),
    ],
)
def test_what_cannot_be_cropped_is_refused_in_one_line(layer: str, kernel: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        network().graph.apply(CompressionPolicy({layer: LayerPolicy(kernel=kernel)}))


def test_a_kernel_without_its_padding_stays_whole() -> None:
    bare = PrunableNetwork(nn.Sequential(nn.Conv2d(3, 4, 5), nn.Flatten(), nn.Linear(4 * 64, 2)), IMAGE[:1])
    with pytest.raises(InputError, match="without the padding"):
        bare.graph.apply(policy_of(_0=3))


@pytest.mark.parametrize("kernel", [0, -1, 2.5, True])
def test_a_kernel_is_a_whole_number(kernel: Any) -> None:
    with pytest.raises(InputError, match="a kernel is a whole number of at least 1"):
        LayerPolicy(kernel=kernel)
