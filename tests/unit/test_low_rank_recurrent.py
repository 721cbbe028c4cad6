"""Recurrent layers that read their input through a low rank."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from automl.compression.low_rank import factor_recurrent_input
from automl.compression.low_rank.layer import dense_spec
from search_spaces.errors import InputError
from search_spaces.factorisations import factors

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

LAYERS = [
    nn.LSTM(10, 6, batch_first=True),
    nn.LSTM(10, 6, num_layers=2, bias=False),
    nn.LSTM(10, 6, proj_size=3),
    nn.GRU(10, 6, batch_first=True),
    nn.GRU(10, 6, num_layers=3),
    nn.RNN(10, 12, nonlinearity="relu"),
]


def sequence(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def flat(found: object) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    assert isinstance(found, tuple)
    return [tensor for each in found if each is not None for tensor in flat(each)]


def same(one: object, other: object) -> bool:
    return all(torch.allclose(first, second, atol=1e-5) for first, second in zip(flat(one), flat(other), strict=True))


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_full_rank_is_the_layer(layer: nn.LSTM | nn.GRU | nn.RNN) -> None:
    layer.eval()
    built = factor_recurrent_input(layer, 10, must_save=False)
    x = sequence(5, 4, 10)
    assert same(built(x), layer(x))
    _, states = layer(x)
    assert same(built(x, states), layer(x, states))
    assert same(built(x[0]), layer(x[0]))  # without a batch


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_matrix_of_low_rank_is_read_with_fewer_weights(layer: nn.LSTM | nn.GRU | nn.RNN) -> None:
    gates = layer.weight_ih_l0.shape[0]
    with torch.no_grad():
        layer.weight_ih_l0.copy_(sequence(gates, 3) @ sequence(3, 10))
    built = factor_recurrent_input(layer, (3,))
    counted = factors(dense_spec(layer.weight_ih_l0, "weight_ih_l0"), "svd", (3,))
    assert [tuple(weight.shape) for weight in (built[0].weight, built[1].weight_ih_l0)] == [
        part.weight_shape for part in counted
    ]
    saved = sum(each.numel() for each in layer.parameters()) - sum(each.numel() for each in built.parameters())
    assert saved == gates * 10 - 3 * (gates + 10)
    x = sequence(7, 2, 10)
    assert same(built(x), layer(x))


def test_packed_sequences() -> None:
    layer = nn.GRU(10, 6)
    packed = pack_padded_sequence(sequence(5, 3, 10), torch.tensor([5, 3, 2]))
    (found, state), (expected, last) = factor_recurrent_input(layer, 10, must_save=False)(packed), layer(packed)
    assert isinstance(found, PackedSequence)
    assert torch.allclose(found.data, expected.data, atol=1e-5)
    assert torch.allclose(state, last, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The tensor attributes self.1._flat_weights")  # so does torch's own layer alone
@pytest.mark.parametrize("layer", [nn.LSTM(10, 6, batch_first=True), nn.GRU(10, 6, batch_first=True)], ids=str)
def test_it_exports(layer: nn.LSTM | nn.GRU) -> None:
    built = factor_recurrent_input(layer, 4).eval()
    x = sequence(2, 5, 10)
    exported = torch.export.export(built, (x,)).module()
    assert same(exported(x), built(x))


def test_the_layer_stays_and_the_result_is_its_own() -> None:
    layer = nn.LSTM(10, 6).eval().requires_grad_(False)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    before = torch.get_rng_state()
    built = factor_recurrent_input(layer, 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(part.training for part in built.modules())
    assert not any(parameter.requires_grad for parameter in built.parameters())
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.zero_()
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())
    assert layer.input_size == 10
    assert not built(sequence(3, 2, 10))[0].any()


def test_gradients_reach_both_factors() -> None:
    built = factor_recurrent_input(nn.GRU(10, 6), 4)
    built(sequence(3, 2, 10))[0].sum().backward()
    assert all(parameter.grad is not None for parameter in built.parameters())


@pytest.mark.parametrize(
    ("layer", "matrix", "rank", "message"),
    [
        (nn.LSTM(10, 6), "weight_hh_l0", 2, "it stands inside the recurrence"),
        (nn.GRU(10, 6, num_layers=2), "weight_ih_l1", 2, "it reads what the layer below gives inside the same module"),
        (nn.GRU(10, 6, bidirectional=True), "weight_ih_l0", 2, "both directions read the input"),
        (nn.GRU(10, 6, bidirectional=True), "weight_ih_l0_reverse", 2, "the other direction reads the same sequence"),
        (nn.LSTM(10, 6), "weight_ih_l7", 2, "the recurrent layer has no matrix 'weight_ih_l7'; did you mean"),
        (nn.LSTM(10, 6), "weight_ih_l0", 11, "the rank of layer 'weight_ih_l0' under 'svd' is from 1 to 10, got 11"),
        (nn.LSTM(10, 6), "weight_ih_l0", 0, "from 1 to 10, got 0"),
        (nn.LSTM(10, 6), "weight_ih_l0", 10, "rank 10 saves nothing"),
        (nn.LSTMCell(10, 6), "weight_ih", 2, "is an LSTM, GRU or RNN, got LSTMCell"),
        (nn.Linear(10, 6), "weight", 2, "is an LSTM, GRU or RNN, got Linear"),
    ],
)
def test_what_is_refused(layer: nn.RNNBase, matrix: str, rank: int, message: str) -> None:
    with pytest.raises(InputError) as caught:
        factor_recurrent_input(layer, rank, matrix=matrix)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite() -> None:
    layer = nn.LSTM(10, 6)
    with torch.no_grad():
        layer.weight_ih_l0[0, 0] = float("nan")
    with pytest.raises(InputError, match="hold NaN or infinity"):
        factor_recurrent_input(layer, 2)
