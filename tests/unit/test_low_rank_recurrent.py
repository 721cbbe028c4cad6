"""Recurrent layers that read their input through a low rank."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from automl.compression import CompressionOptions, Compressor
from automl.compression.low_rank import factorise
from automl.compression.structure import build, take_apart
from search_spaces.capture import PrunableNetwork, capture_graph
from search_spaces.errors import InputError
from search_spaces.policy import CompressionPolicy, LayerPolicy, beside_pruning

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

MATRIX = "cell.weight_ih_l0"
FEATURES = 10
LAYERS = [
    nn.LSTM(FEATURES, 6, batch_first=True),
    nn.LSTM(FEATURES, 6, num_layers=2, bias=False),
    nn.LSTM(FEATURES, 6, proj_size=3),
    nn.GRU(FEATURES, 6, batch_first=True),
    nn.GRU(FEATURES, 6, num_layers=3),
    nn.RNN(FEATURES, 12, nonlinearity="relu"),
]


class Reader(nn.Module):
    """[N, time, 5] -> [N, 3], through a recurrent layer that is called once or twice, from zeros or a given state."""

    def __init__(self, cell: nn.RNNBase, calls: int = 1, given: bool = False) -> None:
        super().__init__()
        self.embed, self.cell = nn.Linear(5, FEATURES), cell
        self.fc = nn.Linear((cell.proj_size or cell.hidden_size) * (2 if cell.bidirectional else 1), 3)
        self.calls = calls
        self.start = nn.Parameter(torch.randn(cell.num_layers, 1, cell.hidden_size)) if given else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        if not self.cell.batch_first:
            x = x.transpose(0, 1)
        start = None if self.start is None else self.start.expand(-1, x.shape[0], -1).contiguous()
        found = [self.cell(x * (call + 1), start)[0] for call in range(self.calls)]
        return self.fc(torch.stack(found).sum(0).mean(1 if self.cell.batch_first else 0))  # type: ignore[no-any-return]


def captured(cell: nn.RNNBase, **how: Any) -> tuple[PrunableNetwork, Tensor]:
    torch.manual_seed(0)
    return PrunableNetwork(Reader(cell, **how).eval(), torch.randn(3, 7, 5)), torch.randn(4, 7, 5)


def compressor(network: PrunableNetwork) -> Compressor:
    return Compressor(network, None, CompressionOptions(reconstruct=False))


def matrix(module: nn.Module) -> Tensor:
    return module.get_parameter(MATRIX).detach()


def product(module: nn.Module) -> Tensor:
    """What the recurrent layer and the linear one before it read the sequence with."""
    return matrix(module) @ module.get_parameter(f"{MATRIX}_factor.weight").detach()


@pytest.mark.parametrize("cell", LAYERS, ids=str)
def test_full_rank_is_the_layer(cell: nn.RNNBase) -> None:
    network, x = captured(cell)
    module = network.prune({})
    expected, weight = module(x), matrix(module)
    linear = nn.Linear(FEATURES, len(weight), bias=False)
    linear.weight = nn.Parameter(weight)
    take_apart(module, MATRIX, list(factorise(linear, "svd", FEATURES, must_save=False)))
    assert module.get_parameter(f"{MATRIX}_factor.weight").shape == (FEATURES, FEATURES)
    torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("cell", "how"),
    [*((cell, {}) for cell in LAYERS), (LAYERS[0], {"calls": 2}), (LAYERS[3], {"given": True})],
    ids=str,
)
def test_a_policy_counts_what_is_built(cell: nn.RNNBase, how: dict[str, Any]) -> None:
    network, x = captured(cell, **how)
    found = compressor(network).compress(CompressionPolicy({MATRIX: LayerPolicy(rank=4)}))
    rows = len(matrix(network.prune({})))
    assert network.graph.params - found.graph.params == rows * FEATURES - 4 * (rows + FEATURES)
    assert found.graph.params == sum(parameter.numel() for parameter in found.module.parameters())
    built = capture_graph(found.module, x)
    for count in ("macs", "params", "weight_bytes"):
        assert getattr(found.graph, count) == getattr(built, count)
    for said, seen in zip(found.graph.layers, built.layers, strict=True):
        assert (said.name, said.weight_shape, said.positions) == (seen.name, seen.weight_shape, seen.positions)
    for one, other in zip(found.graph.operators, built.operators, strict=True):
        assert (one.kind, one.shape, one.layer, one.batched) == (other.kind, other.shape, other.layer, other.batched)


@pytest.mark.parametrize("cell", [LAYERS[1], LAYERS[3]], ids=str)
def test_the_matrix_is_the_closest_of_its_rank(cell: nn.RNNBase) -> None:
    """Eckart & Young: the squared error is the sum of the squared singular values that are cut off."""
    network, _ = captured(cell)
    weight = matrix(network.prune({})).double()
    tail = np.linalg.svd(weight.numpy(), compute_uv=False)[4:]
    found = product(compressor(network).apply(CompressionPolicy({MATRIX: LayerPolicy(rank=4)}))).double()
    np.testing.assert_allclose(float((found - weight).square().sum()), np.square(tail).sum(), rtol=1e-5)


@pytest.mark.parametrize("cell", [LAYERS[1], LAYERS[4]], ids=str)
def test_channels_are_pruned_of_the_factored_matrix(cell: nn.RNNBase) -> None:
    """Hidden units by the rows of the one factor, features by the columns of the other."""
    network, x = captured(cell)
    compress = compressor(network)
    keep = {"embed": LayerPolicy(keep=0.6), MATRIX: LayerPolicy(keep=0.5)}
    joint = CompressionPolicy({**keep, MATRIX: LayerPolicy(keep=0.5, rank=2)})
    found = compress.compress(joint)
    cell_of: nn.RNNBase = found.module.get_submodule("cell")  # type: ignore[assignment]
    assert (cell_of.input_size, cell_of.hidden_size) == (2, 3)
    assert found.graph.params == sum(parameter.numel() for parameter in found.module.parameters())
    assert found.graph.macs == capture_graph(found.module, x).macs

    units = network.units[MATRIX]
    kept = compress.kept(joint)
    rows = np.isin(units.out_unit, kept[MATRIX])
    columns = np.isin(units.in_unit, kept["embed"])
    whole = product(compress.apply(CompressionPolicy({MATRIX: LayerPolicy(rank=2)})))
    torch.testing.assert_close(product(found.module), whole[rows][:, columns], atol=1e-6, rtol=1e-5)

    pruned = compress.apply(CompressionPolicy(keep))
    pruned.get_parameter(MATRIX).data.copy_(product(found.module))
    torch.testing.assert_close(found.module(x), pruned(x), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:The tensor attributes self.cell._flat_weights")  # so does torch's own layer alone
def test_it_is_built_again_quantised_and_exported() -> None:
    network, x = captured(LAYERS[0])
    policy = CompressionPolicy({MATRIX: LayerPolicy(keep=0.5, rank=4, sparsity=0.3, weight_bits=8, activation_bits=8)})
    compress = Compressor(network, x, CompressionOptions(reconstruct=False))
    found = compress.compress(policy)
    assert sorted(found.masks) == sorted(found.weights) == [MATRIX, f"{MATRIX}_factor"]
    again = build(network, compress.kept(policy), beside_pruning(policy))
    again.load_state_dict(found.module.state_dict())
    assert torch.equal(again(x), found.module(x))
    exported = torch.export.export(found.module, (x,)).module()
    torch.testing.assert_close(exported(x), found.module(x))


def test_the_network_stays_and_gradients_reach_both_factors() -> None:
    network, x = captured(LAYERS[3])
    before = matrix(network.prune({})).clone()
    found = compressor(network).apply(CompressionPolicy({MATRIX: LayerPolicy(rank=4)}))
    found(x).sum().backward()
    for name in (MATRIX, f"{MATRIX}_factor.weight"):
        parameter = found.get_parameter(name)
        assert parameter.grad is not None
        assert parameter.grad.any()
        parameter.data.zero_()
    assert torch.equal(matrix(network.prune({})), before)


@pytest.mark.parametrize(
    ("cell", "name", "rank", "message"),
    [
        (LAYERS[0], "weight_hh_l0", 2, "it stands inside the recurrence"),
        (LAYERS[1], "weight_ih_l1", 2, "it reads what the layer below gives inside the same module"),
        (nn.GRU(10, 6, bidirectional=True), "weight_ih_l0", 2, "reads in both directions and stays whole"),
        (nn.GRU(10, 6, bidirectional=True), "weight_ih_l0_reverse", 2, "the other direction reads the same sequence"),
        (LAYERS[0], "weight_ih_l7", 2, "no convolution or linear layer 'cell.weight_ih_l7'; did you mean"),
        (LAYERS[0], "weight_ih_l0", 11, "the rank of layer 'cell.weight_ih_l0' under 'svd' is from 1 to 10, got 11"),
        (
            LAYERS[0],
            "weight_ih_l0",
            8,
            "rank 8 saves nothing in layer 'cell.weight_ih_l0'",
        ),
    ],
)
def test_what_is_refused(cell: nn.RNNBase, name: str, rank: int, message: str) -> None:
    network, _ = captured(cell)
    with pytest.raises(InputError) as caught:
        network.graph.apply(CompressionPolicy({f"cell.{name}": LayerPolicy(rank=rank)}))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
