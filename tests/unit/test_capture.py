import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from capture_nets import (
    NETS,
    Attention,
    ChannelShuffleModule,
    Concatenated,
    FixedBatch,
    Flattened,
    FreeWeights,
    Gated,
    Grouped,
    OneDimensional,
    OptionA,
    OptionAZeros,
    PixelShuffled,
    PlainMask,
    PreActivationResidual,
    Rearranged,
    Reflected,
    Shared,
    Shuffle,
    SpatialMask,
    SqueezeExcite,
    Tied,
    UNet,
    counted_macs,
    example,
    random_units,
    randomised,
    relative_error,
    zeroed,
)
from torch import nn

from search_spaces import labels, operator_rules
from search_spaces.capture import PrunableNetwork, capture_graph
from search_spaces.errors import InputError
from search_spaces.template import op_name

TOLERANCE = 1e-4


def captured(net: type[nn.Module]) -> tuple[nn.Module, torch.Tensor, PrunableNetwork]:
    torch.manual_seed(0)
    model = randomised(net())
    return model, example(model), PrunableNetwork(model, example(model))


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_pruned_network_equals_the_zeroed_one(net: type[nn.Module]) -> None:
    model, x, network = captured(net)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        assert relative_error(network.prune({})(x), model(x)) < TOLERANCE
        changed = []
        for _ in range(3):
            kept = random_units(network, rng)
            pruned, twin = network.prune(kept), zeroed(network, model, kept)(x)
            assert relative_error(pruned(x), twin) < TOLERANCE
            changed.append(relative_error(twin, model(x)))
            graph = network.graph.with_kept([len(kept[group.name]) for group in network.graph.groups])
            assert graph.macs == counted_macs(pruned, x)
            if net is not FreeWeights:  # whose normed weight is counted as the one weight it comes to
                assert graph.params == sum(parameter.numel() for parameter in pruned.parameters())
    assert max(changed) > 0.01  # or the comparison would show nothing
    assert set(pruned.state_dict()) <= set(model.state_dict())
    if getattr(net, "refuses", False):
        assert len(network.graph.refusals) > 1
    if net is not FixedBatch:
        assert network.any_batch
    for size in (1, 5):
        assert pruned(example(model, size)).shape[0] == size


@pytest.mark.parametrize(
    ("net", "groups"),
    [
        (PreActivationResidual, {"stem": 12, "a": 9}),
        (OptionA, {"stem": 8, "a": 16, "b": 8}),  # b: the outputs that meet padding only
        (OptionAZeros, {"stem": 8}),  # halves of a are tied to the stem
        (Shuffle, {"stem": 6, "stem#2": 3, "grouped": 4}),
        (ChannelShuffleModule, {"stem": 12, "last": 8}),
        (SqueezeExcite, {"stem": 14, "down": 4, "fc1": 6, "last": 10}),
        (Grouped, {"stem": 12, "a": 3, "b": 6, "c": 9}),
        (Shared, {"stem": 10}),
        (Tied, {"stem": 10}),
        (Flattened, {"stem": 10, "fc1": 20, "fc2": 12}),
        (Concatenated, {"stem": 4, "a": 6, "b": 6, "c": 10}),
        (Attention, {"stem": 9, "inner": 13, "up": 20}),
        (OneDimensional, {"a": 8, "b": 6}),
        (PixelShuffled, {"stem": 8, "up": 5, "down": 5, "last": 6}),
        (SpatialMask, {"stem": 10, "last": 9}),
        (PlainMask, {"stem": 10, "last": 9}),
        (Gated, {"stem": 8, "last": 7}),
        (UNet, {"a": 6, "b": 8, "merge": 11, "last": 10}),
        (Reflected, {"stem": 8, "last": 6}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_groups_are_those_found_by_hand(net: type[nn.Module], groups: dict[str, int]) -> None:
    network = PrunableNetwork(net(), example(net()), prove=False)
    assert {group.name: group.width for group in network.graph.groups} == groups


def test_roles_in_a_group() -> None:
    graph = capture_graph(OptionA(), example(OptionA()))
    stem, a, b = graph.groups
    assert (stem.producers, stem.carriers, stem.consumers) == (("stem", "b"), ("norm",), ("a", "head"))
    assert (a.producers, a.consumers) == (("a",), ("b",))
    assert (b.producers, b.carriers, b.consumers) == (("b",), ("norm",), ("head",))


def test_units_tell_where_each_channel_belongs() -> None:
    network = PrunableNetwork(OptionA(), example(OptionA()))
    units = network.units["b"]
    assert units.in_group.tolist() == [1] * 16
    assert units.in_unit.tolist() == list(range(16))
    assert units.out_group.tolist() == [2] * 4 + [0] * 8 + [2] * 4
    assert units.out_unit.tolist() == [0, 1, 2, 3, *range(8), 4, 5, 6, 7]
    assert (network.units["stem"].in_group == -1).all()


def test_refusals_name_the_operator_and_its_module() -> None:
    reasons = {refusal.name: refusal.reason for refusal in capture_graph(Rearranged(), example(Rearranged())).refusals}
    assert "softmax" in reasons["inner"]
    reasons = {refusal.name: refusal.reason for refusal in capture_graph(Attention(), example(Attention())).refusals}
    assert reasons["head"] == "they are the network's output"
    assert "'attention'" in reasons["attention.out_proj"]


def test_the_model_is_left_alone() -> None:
    model = Shuffle().train()
    before = copy.deepcopy(model.state_dict())
    state = torch.random.get_rng_state()
    network = PrunableNetwork(model, example(model))
    pruned = network.prune({"stem": [0, 1]})
    for parameter in pruned.parameters():
        parameter.data.fill_(7.0)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    again = network.prune({"stem": [0, 1]})
    assert not any(bool((parameter == 7.0).all()) for parameter in again.parameters())


def test_pruned_network_trains() -> None:
    _, x, network = captured(Shared)
    pruned = network.prune({"stem": [0, 3, 4, 9]})
    assert not any(module.training for module in pruned.modules())
    pruned.train()
    mean = pruned.norm.running_mean.clone()
    torch.manual_seed(0)
    first, second = pruned(x), pruned(x)
    assert not torch.equal(first, second)  # dropout
    assert not torch.equal(pruned.norm.running_mean, mean)
    first.sum().backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())
    pruned.eval()
    assert torch.equal(pruned(x), pruned(x))


def test_pruned_network_is_a_plain_module() -> None:
    _, x, network = captured(Shuffle)
    pruned = network.prune({"stem": [0, 2, 3], "grouped": [1]})
    calls: list[object] = []
    pruned.stem.register_forward_hook(lambda *_: calls.append(1))
    network.prune({})(x)
    assert not calls  # hooks are not shared
    for twin in (copy.deepcopy(pruned), pickle.loads(pickle.dumps(network.prune({"stem": [0, 2, 3], "grouped": [1]})))):
        assert torch.equal(twin(x), pruned(x))
    assert isinstance(pruned.stem, nn.Conv2d)
    assert pruned.stem.out_channels == pruned.stem.weight.shape[0]


def test_pruned_network_can_be_captured_again() -> None:
    _, x, network = captured(Concatenated)
    kept = {"stem": np.array([1, 3]), "b": np.array([0, 4, 5])}
    again = PrunableNetwork(network.prune(kept), x)
    assert {group.name: group.width for group in again.graph.groups} == {"stem": 2, "a": 6, "b": 3, "c": 10}
    expected = network.graph.with_kept([2, 6, 3, 10])
    assert (again.graph.macs, again.graph.params) == (expected.macs, expected.params)
    assert [layer.name for layer in again.graph.layers] == [layer.name for layer in expected.layers]


@pytest.mark.parametrize("net", [Shuffle, Attention, OptionA], ids=lambda net: net.__name__)
def test_pruned_network_exports(net: type[nn.Module]) -> None:
    _, x, network = captured(net)
    pruned = network.prune(random_units(network, np.random.default_rng(1), least=0.4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's own
        program = torch.export.export(pruned, (x,))
    assert relative_error(program.module()(x), pruned(x)) < TOLERANCE


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_operators_have_the_shapes_of_the_pruned_network(net: type[nn.Module]) -> None:
    _, x, network = captured(net)
    kept = random_units(network, np.random.default_rng(2))
    shapes: dict[str, tuple[int, ...]] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, node: torch.fx.Node) -> object:
            result = super().run_node(node)
            if isinstance(result, torch.Tensor):
                shapes[node.name] = tuple(result.shape)
            return result

    with torch.no_grad():
        Recorder(network.prune(kept)).run(x)
    graph = network.graph.with_kept([len(kept[group.name]) for group in network.graph.groups])
    compared = 0
    for operator in graph.operators:
        if operator.name in shapes and operator.batched:
            compared += 1
            assert shapes[operator.name] == (2, *operator.shape), operator
    assert compared > len(graph.operators) / 3
    names = {operator.name for operator in graph.operators}
    assert all(source in names for operator in graph.operators for source in operator.inputs)
    assert len(names) == len(graph.operators)
    assert graph.operators[-1].kind == "output"


def test_operator_kinds() -> None:
    class Kinds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.fc, self.drop = (
                nn.Conv2d(3, 4, 3),
                nn.BatchNorm2d(4),
                nn.Linear(8, 2),
                nn.Dropout(),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = F.relu6(self.norm(self.conv(x)))
            y = F.hardswish(y + F.max_pool2d(x, 3, 1)[:, :1]) * torch.sigmoid(F.relu(y))
            y = torch.cat([F.avg_pool2d(y, 2), F.silu(y[:, :, :3, :3])], 1)
            return self.fc(self.drop(F.adaptive_avg_pool2d(y, 1).flatten(1)))

    graph = capture_graph(Kinds(), torch.randn(1, 3, 8, 8))
    assert [operator.kind for operator in graph.operators] == [
        *("input", "conv", "batch_norm", "relu6", "max_pool", "slice", "add", "hardswish", "relu", "sigmoid", "mul"),
        *("avg_pool", "slice", "slice", "silu", "cat", "global_avg_pool", "flatten", "dropout", "linear", "output"),
    ]


def test_depthwise_comes_back_from_one_channel() -> None:
    graph = capture_graph(Shuffle(), example(Shuffle()))
    least = graph.with_kept([1] * len(graph.groups))
    assert least.with_kept(graph.kept).macs == graph.macs


def test_networks_of_one_seed_have_one_digest() -> None:
    first, second = capture_graph(OptionA(), example(OptionA())), capture_graph(OptionA(), example(OptionA(), 1))
    assert first.digest == second.digest
    assert first.digest != capture_graph(OptionAZeros(), example(OptionA())).digest


def test_a_wrong_rule_is_found_by_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flipped channels taken for unmoved ones: that group is refused, the others stay."""

    class Flipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.fc = (
                nn.Conv2d(3, 8, 3),
                nn.Conv2d(8, 7, 1),
                nn.Conv2d(7, 6, 1),
                nn.Linear(6, 2),
            )
            nn.init.zeros_(self.b.weight)  # which would hide the error

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.c(self.b(self.a(x).flip(1))).mean((2, 3)))

    x = torch.randn(1, 3, 6, 6)
    assert [group.name for group in capture_graph(Flipped(), x).groups] == ["a", "b", "c"]
    right = labels.rule_of

    def wrong(node: torch.fx.Node) -> operator_rules.Rule | None:
        return operator_rules._pointwise if op_name(node) == "flip" else right(node)

    monkeypatch.setattr(labels, "rule_of", wrong)
    network = PrunableNetwork(Flipped(), x)
    assert [group.name for group in network.graph.groups] == ["b", "c"]
    (refusal,) = [refusal for refusal in network.graph.refusals if refusal.name == "a"]
    assert "fails the proof" in refusal.reason
    with pytest.raises(InputError, match="cannot be pruned"):
        network.graph.kept_units(network.graph.policy().from_keep({"a": 0.5}))


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"stam": [0]}, "did you mean 'stem'"),
        ({"stem": []}, "at least one"),
        ({"stem": [0, 8]}, "from 0 to 7"),
        ({"stem": [-1]}, "from 0 to 7"),
        ({"stem": [2, 2]}, "rising"),
    ],
)
def test_bad_choice_of_units(kept: dict[str, list[int]], message: str) -> None:
    network = PrunableNetwork(OptionA(), example(OptionA()), prove=False)
    with pytest.raises(InputError, match=message):
        network.prune(kept)


class Pair(OptionA):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return x, x


class Branching(OptionA):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.sum() > 0 else x.flatten(1)


class Random(OptionA):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + torch.randn_like(x))


class Summed(OptionA):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).sum()


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (OptionA, (1, 4, 8, 8), r"cannot be run on an input of shape \(1, 4, 8, 8\) \(float32\): .*; give"),
        (OptionA, (8,), "batch first"),
        (Pair, (1, 3, 8, 8), "one tensor, batch first, got tuple"),
        (Summed, (1, 3, 8, 8), r"one tensor, batch first, got shape \(\)"),
        (Branching, (1, 3, 8, 8), "torch.export cannot capture the model"),
        (Random, (1, 3, 8, 8), "does not reproduce the model"),
    ],
)
def test_models_that_cannot_be_captured(model: type[nn.Module], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        PrunableNetwork(model(), torch.randn(shape))
    assert "\n" not in str(error.value)


class Embedded(nn.Module):
    """Of whole numbers, which the proof must not replace by noise."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.a, self.b = nn.Embedding(11, 6), nn.Linear(6, 9), nn.Linear(9, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.relu(self.a(self.table(x)))).mean(1)


def test_whole_numbers_as_input() -> None:
    network = PrunableNetwork(Embedded(), torch.arange(10).reshape(2, 5))
    assert [group.name for group in network.graph.groups] == ["a"]
    assert network.prune({"a": [1]})(torch.arange(10).reshape(2, 5)).shape == (2, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    model = Shuffle().to(dtype)
    network = PrunableNetwork(model, example(model).to(dtype))
    assert len(network.graph.groups) == 3
    assert network.graph.operators[1].dtype == str(dtype).removeprefix("torch.")
    assert network.prune({"grouped": [0]})(example(model).to(dtype)).dtype == dtype


def test_capture_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    PrunableNetwork(Attention(), example(Attention())).prune({})
    assert capfd.readouterr() == ("", "")
