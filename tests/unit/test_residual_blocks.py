"""Residual blocks: which ones are found, and that the graph without them is the network without them."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from automl.compression import Compressor
from automl.compression.blocks import without_blocks as module_without
from automl.compression.structure import build
from automl.models import build_model
from automl.testing.problems import conv_chain
from search_spaces.blocks import residual_blocks
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError
from search_spaces.policy import CompressionPolicy, LayerPolicy, beside_pruning


def captured(model: nn.Module, size: int = 8, channels: int = 3) -> PrunableNetwork:
    """Its channel groups are not proven, which takes longest: nothing here depends on that."""
    x = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    return PrunableNetwork(model, x, prove=False)


@cache
def zoo(name: str, **args: object) -> PrunableNetwork:
    return captured(build_model(name, args, classes=4, input_shape=(3, 8, 8)))


def names(network: PrunableNetwork) -> list[str]:
    return [block.name for block in residual_blocks(network.graph)]


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_resnet20(shortcut: str) -> None:
    network = zoo("resnet20", shortcut=shortcut)
    blocks = residual_blocks(network.graph)
    assert [block.name for block in blocks] == [f"blocks.{index}" for index in (0, 1, 2, 4, 5, 7, 8)]
    for block in blocks:
        assert block.layers == (f"{block.name}.conv1", f"{block.name}.conv2")
        assert len(block.operators) == 5  # two convolutions, two batch norms, an activation


def test_resnet56() -> None:
    assert names(zoo("resnet56")) == [f"blocks.{index}" for index in range(27) if index not in (9, 18)]


def test_mobilenet_v2() -> None:
    network = zoo("mobilenet_v2")
    expected = [f"blocks.{index}.body" for index in (2, 4, 5, 7, 8, 9, 11, 12, 14, 15)]
    assert names(network) == expected
    assert all(len(block.layers) == 3 for block in residual_blocks(network.graph))


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("shufflenet_v2", "densenet40", "mobilenet_v1")]


@pytest.mark.parametrize("name", ["vgg11", "plain20", *SLOW])
def test_networks_without_any(name: str) -> None:
    model = build_model(name, {}, classes=4, input_shape=(3, 32, 32))
    assert residual_blocks(captured(model, 32).graph) == ()


def test_no_residual_sum_in_a_chain() -> None:
    assert residual_blocks(conv_chain()) == ()


class Functional(nn.Module):
    """Layers of one size at the top level, in a forward that is given."""

    def __init__(self, forward: Callable[["Functional", Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.end = nn.Conv2d(4, 2, 1)
        self.table = nn.Parameter(torch.ones(4, 1, 1))
        self.how = [forward]

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.how[0](self, x)).mean((2, 3))


def found(forward: Callable[[Functional, Tensor], Tensor]) -> list[str]:
    return names(captured(Functional(forward).eval(), channels=4))


def nested(net: Functional, x: Tensor) -> Tensor:
    inner = net.a(x).relu()
    return x + net.c(inner + net.b(inner))


def two_readers(net: Functional, x: Tensor) -> Tensor:
    branch = net.a(x)
    return (x + branch) * branch.sigmoid()


def other_source(net: Functional, x: Tensor) -> Tensor:
    stream = net.a(x).relu()
    return stream + net.b(stream) * net.c(x)  # the branch reads what the sum does not add it to


def shared_layer(net: Functional, x: Tensor) -> Tensor:
    x = net.a(x).relu()
    return net.a(x + net.a(x))


def twice(net: Functional, x: Tensor) -> Tensor:
    x = x + net.a(x).relu()
    return net.b(x) + x


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda net, x: x + net.b(net.a(x).relu()), ["a"]),
        (lambda net, x: net.a(x) + x, ["a"]),
        (twice, ["a", "b"]),
        (nested, ["b", "a"]),
        (lambda net, x: x + net.table * net.a(x), ["a"]),
        (lambda net, x: torch.add(x, net.a(x), alpha=1), ["a"]),
        (lambda net, x: torch.add(x, net.a(x), alpha=2), []),
        (lambda net, x: x - net.a(x), []),
        (lambda net, x: x + net.a(x).mean((2, 3), keepdim=True), []),  # broadcast
        (lambda net, x: x[..., :1, :1] + net.a(x), []),
        (lambda net, x: net.a(x) + net.b(x), []),  # two branches, neither an identity
        (lambda net, x: x + x.relu(), []),  # no layer
        (lambda net, x: net.a(x) + net.table, []),
        (two_readers, []),
        (other_source, []),
        (shared_layer, []),
    ],
)
def test_what_is_a_block(forward: Callable[[Functional, Tensor], Tensor], expected: list[str]) -> None:
    assert found(forward) == expected


def test_blocks_are_named_apart() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.ModuleDict({name: nn.Linear(4, 4) for name in "pqrs"})

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.layer["q"](self.layer["p"](x).relu())
            return x + self.layer["s"](self.layer["r"](x).relu())

    network = PrunableNetwork(
        nn.Sequential(nn.Linear(3, 4), Attention(), nn.Linear(4, 2)).eval(), torch.randn(2, 3), prove=False
    )
    assert names(network) == ["1.layer.p", "1.layer.r"]


def test_a_path_that_others_share_names_nothing() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
            self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attention(x)
            return x + self.fc2(self.fc1(x).relu())

    network = PrunableNetwork(nn.Sequential(nn.Linear(3, 4), Encoder(), nn.Linear(4, 2)).eval(), torch.randn(2, 3))
    assert names(network) == ["1.attention", "1.fc1"]


def test_one_inside_of_another_with_the_same_layers() -> None:
    assert found(lambda net, x: x + (y := x.relu()) + net.a(y)) == []
    assert found(lambda net, x: x + ((y := x.relu()) + net.a(y)).sigmoid()) == ["a", "a#2"]


def removed(network: PrunableNetwork, kept: dict[str, np.ndarray], indices: tuple[int, ...]) -> None:
    """The graph's arithmetic against the module: MACs as a new capture counts them, parameters as torch does."""
    graph = network.graph
    blocks = [residual_blocks(graph)[index] for index in indices]
    policy = CompressionPolicy({block.name: LayerPolicy(remove=True) for block in blocks})
    smaller = graph.apply(policy).with_kept([len(kept.get(g.name, range(g.width))) for g in graph.groups])
    module = module_without(network.prune(kept), blocks)
    again = PrunableNetwork(module, torch.randn(2, *graph.input_shape), prove=False).graph
    assert smaller.params == sum(parameter.numel() for parameter in module.parameters())
    assert smaller.macs == again.macs
    assert [layer.name for layer in smaller.layers] == [layer.name for layer in again.layers]
    assert [operator.kind for operator in smaller.operators] == [operator.kind for operator in again.operators]
    assert [operator.shape for operator in smaller.operators] == [operator.shape for operator in again.operators]
    assert smaller.digest == graph.digest


def test_arithmetic_of_resnet20() -> None:
    network = zoo("resnet20")
    removed(network, {}, (3, 1))
    removed(network, {group.name: np.arange(0, group.width, 2) for group in network.graph.groups}, tuple(range(7)))


def test_arithmetic_of_mobilenet_v2_and_of_nested_blocks() -> None:
    removed(zoo("mobilenet_v2"), {}, (1, 2, 5))
    removed(captured(Functional(nested).eval(), channels=4), {}, (0, 1))
    removed(captured(Functional(nested).eval(), channels=4), {}, (1,))


def test_a_policy_means_the_same_without_a_block() -> None:
    network = zoo("resnet20")
    graph = network.graph
    policy = graph.policy([max(1, group.width // 2) for group in graph.groups])
    both = CompressionPolicy({**policy.layers, "blocks.1": LayerPolicy(remove=True)})
    smaller = graph.apply(both)
    assert [block.name for block in smaller.removed] == ["blocks.1"]
    assert smaller.kept == graph.apply(policy).kept
    gone = sum(layer.macs for layer in graph.apply(policy).layers if layer.name.startswith("blocks.1."))
    assert smaller.macs == graph.apply(policy).macs - gone
    assert graph.apply(smaller.policy()) == smaller
    assert smaller.apply(policy) == graph.apply(policy)
    assert CompressionPolicy.from_json(both.to_json()) == both


def test_a_policy_that_removes_is_applied() -> None:
    network = zoo("resnet20")
    fields = {"blocks.1": LayerPolicy(remove=True), "blocks.0.conv1": LayerPolicy(keep=0.5, weight_bits=4)}
    policy, x = CompressionPolicy(fields), torch.randn(16, 3, 8, 8)
    found = Compressor(network, x).compress(policy)
    assert found.graph.params == sum(parameter.numel() for parameter in found.module.parameters())
    assert not any(name.startswith("blocks.1.") for name in found.module.state_dict())
    again = build(network, Compressor(network, x).kept(policy), beside_pruning(policy))
    again.load_state_dict(found.module.state_dict())
    with torch.no_grad():
        assert torch.equal(again(x), found.module(x))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"blocks.3": LayerPolicy(remove=True)}, "no residual block 'blocks.3' of the network can go"),
        (
            {"blocks.1": LayerPolicy(remove=True), "blocks.1.conv1": LayerPolicy(weight_bits=4)},
            "layer 'blocks.1.conv1' goes with its block",
        ),
    ],
)
def test_what_cannot_be_removed_is_refused(fields: dict[str, LayerPolicy], message: str) -> None:
    with pytest.raises(InputError, match=message):
        zoo("resnet20").graph.apply(CompressionPolicy(fields))
    with pytest.raises(InputError, match="says all that is done to a block"):
        LayerPolicy(remove=True, keep=0.5)


def test_the_module_given_stays_and_the_result_has_tensors_of_its_own() -> None:
    network = zoo("resnet20")
    module, blocks = network.prune({}), residual_blocks(network.graph)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    x = torch.randn(2, 3, 8, 8)
    expected = module(x)
    smaller = module_without(module, blocks[:1])
    assert not smaller.training
    with torch.no_grad():
        for tensor in smaller.state_dict().values():
            tensor.zero_()
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(module(x), expected)
    assert smaller.state_dict().keys() == {name for name in before if not name.startswith("blocks.0.")}
    assert not any(name.startswith("blocks.0") for name, _ in smaller.named_modules())


def test_tensors_that_are_not_saved_are_not_saved_afterwards() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(4, 4, 3, padding=1)
            self.end = nn.Conv2d(4, 2, 1)
            self.register_buffer("scale", torch.rand(4, 1, 1), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.end((x + self.body(x)) * self.scale)

    network = captured(Scaled().eval(), channels=4)
    smaller = module_without(network.prune({}), residual_blocks(network.graph))
    assert smaller.state_dict().keys() == {"end.weight", "end.bias"}


def test_what_is_no_block_of_the_network_is_refused() -> None:
    network = zoo("resnet20")
    module, (first, *_) = network.prune({}), residual_blocks(network.graph)
    with pytest.raises(InputError, match=r"has no block 'blocks\.0' that ends in the sum"):
        module_without(module, [first, first])
    with pytest.raises(InputError, match=r"has no block 'blocks\.0'"):
        module_without(module_without(module, [first]), [first])
    with pytest.raises(InputError, match="has no block 'mine' that ends in the sum 'output'"):
        module_without(module, [replace(first, name="mine", sum="output")])
