"""Recurrent layers, attention and norms over channels: which units there are, and what is left of the modules."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from capture_nets import (
    BiasedHeads,
    GivenState,
    GroupNormed,
    Heads,
    NonLocal,
    Rows,
    StackedStates,
    WrittenHeads,
    counted_macs,
    example,
    random_units,
    randomised,
    relative_error,
    zeroed,
)
from torch import Tensor, nn

from search_spaces.capture import PrunableNetwork, capture_graph
from search_spaces.policy import CompressionPolicy, LayerPolicy

TOLERANCE = 1e-5


def captured(model: nn.Module) -> tuple[nn.Module, Tensor, PrunableNetwork]:
    model = randomised(model)
    return model, example(model), PrunableNetwork(model, example(model))


class TwiceRead(nn.Module):
    """One LSTM reads a sequence and what it made of it, beside a shortcut: hidden units and features are the same."""

    shape = (6, 5)

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.fc = nn.Linear(5, 8), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        zeros = x.new_zeros(1, len(x), 8)
        x = x + self.lstm(x, (zeros, torch.zeros_like(zeros)))[0]
        return self.fc(self.lstm(x)[0].mean(1))


@pytest.mark.parametrize(
    ("net", "groups"),
    [
        (Rows, {"stem": 4, "lstm.weight_ih_l0": 11, "fc1": 9}),
        (StackedStates, {"embed": 8, "lstm.weight_ih_l0": 10, "gru.weight_ih_l0": 7, "rnn.weight_ih_l0": 6}),
        (TwiceRead, {"embed": 8}),
        (GivenState, {"fc1": 12}),
        (Heads, {"qkv": 3, "up": 20}),
        (WrittenHeads, {"qkv": 3, "up": 20}),
        (BiasedHeads, {"stem": 10, "q": 4, "out": 9}),
        (NonLocal, {"stem": 10, "v": 7, "last": 9}),
        (GroupNormed, {"stem": 4, "last": 6}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_groups_are_those_found_by_hand(net: type[nn.Module], groups: dict[str, int]) -> None:
    graph = captured(net())[2].graph
    assert {group.name: group.width for group in graph.groups} == groups


def test_a_hidden_unit_is_a_row_of_every_gate_and_a_column_of_what_reads_it() -> None:
    network = captured(StackedStates())[2]
    index = {group.name: place for place, group in enumerate(network.graph.groups)}
    lstm, gru = index["lstm.weight_ih_l0"], index["gru.weight_ih_l0"]
    for name in ("lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.weight_ih_l1", "lstm.weight_hh_l1"):
        assert network.units[name].out_group.tolist() == [lstm] * 40
        assert network.units[name].out_unit.tolist() == list(range(10)) * 4
    assert network.units["lstm.weight_hh_l1"].in_unit.tolist() == list(range(10))
    assert network.units["gru.weight_ih_l0_reverse"].in_group.tolist() == [lstm] * 10
    assert network.units["gru.weight_ih_l1"].in_unit.tolist() == list(range(7)) * 2  # of both directions
    assert network.units["gru.weight_hh_l1_reverse"].out_group.tolist() == [gru] * 21
    assert network.weight_names["gru.weight_ih_l1"] == "gru.weight_ih_l1"
    assert network.weight_names["embed"] == "embed.weight"
    spec = network.graph.layer("gru.weight_ih_l1_reverse")
    assert (spec.kind, spec.in_channels, spec.out_channels, spec.positions, spec.bias) == ("linear", 14, 21, 6, True)
    assert [operator.kind for operator in network.graph.operators if operator.layer in ("lstm", "gru", "rnn")] == [
        "lstm",
        "gru",
        "rnn",
    ]


def test_what_is_left_is_a_smaller_layer_of_the_same_kind() -> None:
    network = captured(StackedStates())[2]
    pruned = network.prune(
        {"lstm.weight_ih_l0": [0, 4, 9], "gru.weight_ih_l0": [1, 2], "rnn.weight_ih_l0": [5], "embed": [0, 7]}
    )
    lstm, gru, rnn = (pruned.get_submodule(name) for name in ("lstm", "gru", "rnn"))
    assert isinstance(lstm, nn.LSTM)
    assert (lstm.input_size, lstm.hidden_size, lstm.num_layers, lstm.bias) == (2, 3, 2, False)
    assert isinstance(gru, nn.GRU)
    assert (gru.input_size, gru.hidden_size, gru.bidirectional, gru.dropout) == (3, 2, True, 0.1)
    assert isinstance(rnn, nn.RNN)
    assert (rnn.input_size, rnn.hidden_size, rnn.nonlinearity) == (4, 1, "relu")
    fresh = nn.GRU(3, 2, num_layers=2, bidirectional=True)
    assert {name: tensor.shape for name, tensor in gru.state_dict().items()} == {
        name: tensor.shape for name, tensor in fresh.state_dict().items()
    }


def test_a_pruned_layer_computes_with_its_own_parameters() -> None:
    """Copies, loaded weights and gradients reach what forward reads; the layer that was given is left alone."""
    model, x, network = captured(StackedStates())
    before = copy.deepcopy(model.state_dict())
    kept = {"lstm.weight_ih_l0": [0, 4, 9], "gru.weight_ih_l0": [1, 2]}
    pruned = network.prune(kept)
    for twin in (copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        assert torch.equal(twin(x), pruned(x))
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(0.5)
        assert not torch.allclose(twin(x), pruned(x))
        twin.load_state_dict(pruned.state_dict())
        assert torch.equal(twin(x), pruned(x))
    pruned.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.zero_()
    assert bool((pruned.eval()(x) == 0).all())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert bool((network.prune(kept)(x) != 0).any())


def test_heads_are_left_out_whole() -> None:
    network = captured(Heads())[2]
    pruned = network.prune({"qkv": [0, 2], "up": [3]})
    assert pruned.get_submodule("qkv").weight.shape == (2 * 3 * 5, 12)
    assert pruned.get_submodule("proj").weight.shape == (12, 2 * 5)
    assert network.units["qkv"].out_unit.tolist() == [head for _ in range(3) for head in range(3) for _ in range(5)]


def test_a_bias_of_each_head_goes_with_it() -> None:
    network = captured(BiasedHeads())[2]
    assert network.prune({"q": [1, 3]}).get_parameter("bias").shape == (1, 2, 16, 7)


def test_norm_groups_are_left_out_whole() -> None:
    network = captured(GroupNormed())[2]
    pruned = network.prune({"stem": [1, 2, 3]})
    assert pruned.get_submodule("stem").weight.shape[0] == 9
    assert pruned.get_parameter("n1.weight").shape == (9,)
    (norm,) = (node for node in pruned.graph.nodes if "group_norm" in str(node.target) and node.args[1] != 1)
    assert norm.args[1] == 3


@pytest.mark.parametrize(
    ("net", "name", "reason"),
    [
        (Heads, "stem", "layer norm 'n1' normalises over all of them"),
        (GroupNormed, "a", "group norm 'n2' normalises over all of them"),
        (NonLocal, "q", "operator 'matmul' needs them all"),
        (GivenState, "decoder.weight_ih_l0", "recurrent layer 'decoder' starts from a state that it is given"),
        (GivenState, "projected.weight_hr_l0", "recurrent layer 'projected' projects its state"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_refusals_say_why(net: type[nn.Module], name: str, reason: str) -> None:
    reasons = {refusal.name: refusal.reason for refusal in capture_graph(net(), example(net())).refusals}
    assert reason in reasons[name]


@pytest.mark.parametrize("net", [TwiceRead, StackedStates, Heads, GroupNormed], ids=lambda net: net.__name__)
def test_exact_captured_again_and_exported(net: type[nn.Module]) -> None:
    model, x, network = captured(net())
    kept = random_units(network, np.random.default_rng(1), least=0.4)
    counts = {group.name: len(kept[group.name]) for group in network.graph.groups}
    pruned = network.prune(kept)
    with torch.no_grad():
        assert relative_error(pruned(x), zeroed(network, model, kept)(x)) < TOLERANCE
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.export's own
            assert relative_error(torch.export.export(pruned, (x,)).module()(x), pruned(x)) < TOLERANCE
    expected = network.graph.with_kept(list(counts.values()))
    assert expected.macs == counted_macs(pruned, x)
    again = PrunableNetwork(pruned, x, prove=False).graph
    assert (again.macs, again.params) == (expected.macs, expected.params)
    assert {group.name: group.width for group in again.groups} == {
        name: count for name, count in counts.items() if count > 1
    }


def test_a_policy_names_a_matrix() -> None:
    graph = captured(Rows())[2].graph
    for name in ("lstm.weight_ih_l0", "lstm.weight_hh_l0"):
        smaller = graph.apply(CompressionPolicy({name: LayerPolicy(keep=0.5)}))
        assert smaller.layer("lstm.weight_hh_l0").weights == 4 * 6 * 6
        assert smaller.layer("lstm.weight_ih_l0").weights == 4 * 6 * 32


def test_a_wrong_order_of_gates_is_found_by_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates taken for interleaved: every gate would lose other units."""
    repeat = Tensor.repeat

    def interleaved(self: Tensor, *sizes: int) -> Tensor:
        return self.repeat_interleave(4) if sizes == (4,) else repeat(self, *sizes)

    monkeypatch.setattr(Tensor, "repeat", interleaved)
    graph = captured(Rows())[2].graph
    (refusal,) = [refusal for refusal in graph.refusals if refusal.name == "lstm.weight_ih_l0"]
    assert "fails the proof" in refusal.reason
    assert [group.name for group in graph.groups] == ["stem", "fc1"]
