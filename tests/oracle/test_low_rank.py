"""Low rank against what is known of it: errors from numpy's singular values, closed forms, bounds of the literature."""

from itertools import product
from math import prod

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from automl.compression.low_rank import factor_matrix, factorise, layer_spec, rank_by_energy, rank_by_ratio
from search_spaces.factorisations import FACTORISATIONS, factors

Array = npt.NDArray[np.float64]
SHAPES = [(20, 24, 3, 3), (16, 10, 5, 1), (12, 30, 1, 1), (9, 7, 2, 4)]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Numbers whose unfoldings have a spectrum that falls, as trained weights have."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    for axis in (0, 1):
        decay = 1.0 / torch.arange(1, shape[axis] + 1, dtype=torch.float64)
        mix = torch.linalg.qr(torch.randn(shape[axis], shape[axis], generator=generator, dtype=torch.float64)).Q
        weight = torch.movedim(torch.tensordot(mix * decay, weight, dims=([1], [axis])), 0, axis)
    return weight


def convolution(weight: Tensor) -> nn.Conv2d:
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), bias=False, dtype=torch.float64)
    conv.weight = nn.Parameter(weight)
    return conv


def parts_of(weight: Tensor, method: str, rank: tuple[int, ...]) -> list[Array]:
    built = factorise(convolution(weight), method, rank, must_save=False)
    return [part.weight.detach().numpy() for part in built]


def squared(values: Array) -> float:
    return float((values**2).sum())


@pytest.mark.parametrize("shape", SHAPES)
def test_svd_has_the_error_of_eckart_and_young(shape: tuple[int, ...]) -> None:
    weight = drawn(*shape)
    matrix = weight.numpy().reshape(shape[0], -1)
    values = np.linalg.svd(matrix, compute_uv=False)
    for rank in (1, 3, len(values) // 2, len(values)):
        first, last = parts_of(weight, "svd", (rank,))
        error = squared(matrix - last.reshape(shape[0], rank) @ first.reshape(rank, -1))
        assert error == pytest.approx(squared(values[rank:]), rel=1e-9, abs=1e-20)


@pytest.mark.parametrize("shape", SHAPES)
def test_spatial_svd_is_the_optimum_of_its_matrix(shape: tuple[int, ...]) -> None:
    weight = drawn(*shape)
    outputs, inputs, rows, columns = shape
    matrix = np.empty((inputs * rows, outputs * columns))
    for o, i, y, x in product(*map(range, shape)):
        matrix[i * rows + y, o * columns + x] = weight[o, i, y, x]
    values = np.linalg.svd(matrix, compute_uv=False)
    for rank in (1, 4, len(values)):
        vertical, horizontal = parts_of(weight, "spatial_svd", (rank,))
        assert vertical.shape == (rank, inputs, rows, 1)
        assert horizontal.shape == (outputs, rank, 1, columns)
        error = squared(weight.numpy() - np.einsum("riy,orx->oiyx", vertical[..., 0], horizontal[:, :, 0]))
        assert error == pytest.approx(squared(values[rank:]), rel=1e-9, abs=1e-20)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_tucker2_is_no_worse_than_the_truncated_hosvd(shape: tuple[int, ...], share: float) -> None:
    weight = drawn(*shape)
    array = weight.numpy()
    spec, full = layer_spec(convolution(weight)), FACTORISATIONS["tucker2"].full(layer_spec(convolution(weight)))
    inputs, outputs = FACTORISATIONS["tucker2"].usable(spec, (round(share * full[0]), round(share * full[1])))
    first, core, last = parts_of(weight, "tucker2", (inputs, outputs))
    error = squared(array - np.einsum("oq,qpyx,pi->oiyx", last[..., 0, 0], core, first[..., 0, 0]))

    unfoldings = array.transpose(1, 0, 2, 3).reshape(shape[1], -1), array.reshape(shape[0], -1)
    bases, tails = [], []
    for unfolding, rank in zip(unfoldings, (inputs, outputs), strict=True):
        left, values, _ = np.linalg.svd(unfolding)
        bases.append(left[:, :rank] @ left[:, :rank].T)
        tails.append(squared(values[rank:]))
    hosvd = squared(array - np.einsum("po,qi,oiyx->pqyx", bases[1], bases[0], array))
    assert max(tails) * (1 - 1e-9) <= error <= hosvd * (1 + 1e-9)
    assert hosvd <= sum(tails) * (1 + 1e-9)  # De Lathauwer et al. 2000: of what the reference itself is


def test_tucker2_iterates_where_the_hosvd_is_not_the_end() -> None:
    array = np.random.default_rng(0).normal(size=(24, 24, 3, 3))
    bases = [np.linalg.svd(np.moveaxis(array, axis, 0).reshape(24, -1))[0][:, :6] for axis in (0, 1)]
    hosvd = squared(array) - squared(np.einsum("oiyx,oq,ip->qpyx", array, *bases))
    first, core, last = parts_of(torch.from_numpy(array), "tucker2", (6, 6))
    error = squared(array - np.einsum("oq,qpyx,pi->oiyx", last[..., 0, 0], core, first[..., 0, 0]))
    assert error < 0.98 * hosvd


@pytest.mark.parametrize(("method", "rank"), [("svd", (3,)), ("spatial_svd", (4,)), ("tucker2", (3, 5))])
def test_weights_of_low_rank_are_reproduced_with_fewer_of_them(method: str, rank: tuple[int, ...]) -> None:
    weight = {
        "svd": lambda: (drawn(16, 3) @ drawn(3, 12 * 9)).reshape(16, 12, 3, 3),
        "spatial_svd": lambda: torch.einsum("riy,orx->oiyx", drawn(4, 12, 3), drawn(16, 4, 3)),
        "tucker2": lambda: torch.einsum("oq,qpyx,pi->oiyx", drawn(16, 5), drawn(5, 3, 3, 3), drawn(3, 12)),
    }[method]()
    conv = nn.Conv2d(12, 16, 3, stride=2, padding=1)
    with torch.no_grad():
        conv.weight.copy_(weight / weight.std())
    assert rank_by_energy(conv.weight, method, 1.0) == rank
    x = torch.randn(2, 12, 11, 10, generator=torch.Generator().manual_seed(1))
    expected = conv(x)
    built = factorise(conv, method, rank)
    assert sum(parameter.numel() for parameter in built.parameters()) < conv.weight.numel()
    assert (built(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_are_those_of_the_closed_forms(shape: tuple[int, ...]) -> None:
    outputs, inputs, rows, columns = shape
    spec = layer_spec(convolution(drawn(*shape)))
    closed = {
        "svd": lambda r: r * (outputs + inputs * rows * columns),
        "spatial_svd": lambda r: r * (inputs * rows + outputs * columns),
        "tucker2": lambda p, q: inputs * p + p * q * rows * columns + q * outputs,
    }
    for method, ranks in {"svd": [(1,), (4,)], "spatial_svd": [(1,), (5,)], "tucker2": [(1, 1), (4, 4)]}.items():
        for rank in ranks:
            counted = sum(part.weights for part in factors(spec, method, rank, must_save=False))
            built = sum(part.size for part in parts_of(drawn(*shape), method, rank))
            assert counted == built == closed[method](*rank)
        for ratio in (0.3, 0.5, 0.9):
            rank = rank_by_ratio(spec, method, ratio)
            assert closed[method](*rank) <= ratio * prod(shape)
            if len(rank) == 1:
                assert closed[method](rank[0] + 1) > ratio * prod(shape)
            else:
                full = FACTORISATIONS[method].full(spec)
                more = [
                    int(max(each / most for each, most in zip(rank, full, strict=True)) * most) + 1 for most in full
                ]
                assert closed[method](*more) > ratio * prod(shape)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
def test_rank_by_energy_is_the_least_that_keeps_it(energy: float) -> None:
    weight = drawn(20, 24, 3, 3)
    array = weight.numpy()
    for method, matrices in {
        "svd": [array.reshape(20, -1)],
        "tucker2": [array.transpose(1, 0, 2, 3).reshape(24, -1), array.reshape(20, -1)],
    }.items():
        for rank, matrix in zip(rank_by_energy(weight, method, energy), matrices, strict=True):
            values = np.linalg.svd(matrix, compute_uv=False)
            assert squared(values[:rank]) >= energy * squared(values) > squared(values[: rank - 1])


def test_factors_share_the_singular_values_evenly() -> None:
    matrix = drawn(14, 9)
    left, right = factor_matrix(matrix, 5)
    values = np.linalg.svd(matrix.numpy(), compute_uv=False)[:5]
    for gram in (left.T @ left, right @ right.T):
        np.testing.assert_allclose(gram.numpy(), np.diag(values), atol=1e-12)
