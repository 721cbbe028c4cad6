"""Masks against brute force, torch's own pruning, and the schedule as the paper has it."""

from fractions import Fraction
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from automl.compression.sparsity import cubic_share, global_sparsity, magnitude, mask
from search_spaces.sparsity import Sparsity


def weights(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_hand(shape: tuple[int, ...], pattern: str) -> list[list[tuple[int, ...]]]:
    """The atoms as lists of coordinates, told from the coordinates alone."""
    keys = {
        "element": lambda at: at,
        "row": lambda at: at[:-1],
        "column": lambda at: (*at[:-2], at[-1]),
        "kernel": lambda at: at[:2],
        "filter": lambda at: at[:1],
        "block:2x2": lambda at: (at[0] // 2, _flat(at[1:], shape[1:]) // 2),
    }
    atoms: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for at in torch.cartesian_prod(*map(torch.arange, shape)).tolist():
        atoms.setdefault(keys[pattern](tuple(at)), []).append(tuple(at))
    return list(atoms.values())


def _flat(at: tuple[int, ...], shape: tuple[int, ...]) -> int:
    place = 0
    for index, size in zip(at, shape, strict=True):
        place = place * size + index
    return place


@pytest.mark.parametrize(
    ("pattern", "shape"),
    [
        ("element", (2, 6)), ("row", (5, 3)), ("column", (3, 6)), ("row", (2, 2, 3, 2)), ("column", (2, 1, 2, 4)),
        ("kernel", (3, 3, 2, 2)), ("filter", (7, 2, 2, 1)), ("block:2x2", (4, 6)), ("block:2x2", (4, 2, 1, 3)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_no_mask_of_the_pattern_changes_the_weights_less(pattern: str, shape: tuple[int, ...], share: float) -> None:
    """All masks of the pattern with as many zeros, on a small tensor."""
    weight, sparsity = weights(*shape).double(), Sparsity(pattern, share)
    found = mask(magnitude(weight), sparsity)
    atoms = by_hand(shape, pattern)
    norms = [sum(float(weight[at]) ** 2 for at in atom) for atom in atoms]
    zero = int((~found).sum()) // len(atoms[0])
    assert abs(zero - share * len(atoms)) <= 0.5
    best = min(sum(norms[index] for index in gone) for gone in combinations(range(len(atoms)), zero))
    error = float((weight * ~found).square().sum())
    assert error == pytest.approx(best, rel=1e-12)
    assert all(len({bool(found[at]) for at in atom}) == 1 for atom in atoms)


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (1, 4), (3, 4), (2, 3)])
@pytest.mark.parametrize("shape", [(5, 24), (3, 12, 2, 3), (4, 12, 5)])
def test_n_of_m_holds_in_every_window_and_is_the_best_of_each(n: int, m: int, shape: tuple[int, ...]) -> None:
    weight = weights(*shape).double()
    found = mask(magnitude(weight), Sparsity(f"{n}:{m}", 1 - n / m))
    windows = 0
    for out in range(shape[0]):
        for at in torch.cartesian_prod(torch.tensor([0]), *map(torch.arange, shape[2:])).reshape(-1, len(shape) - 1):
            place = tuple(at[1:].tolist())
            for start in range(0, shape[1], m):
                values = [float(weight[(out, start + step, *place)]) for step in range(m)]
                stay = [bool(found[(out, start + step, *place)]) for step in range(m)]
                assert sum(stay) == n
                error = sum(value**2 for value, stays in zip(values, stay, strict=True) if not stays)
                least = min(sum(value**2 for value in gone) for gone in combinations(values, m - n))
                assert error == pytest.approx(least, rel=1e-12)
                windows += 1
    assert windows * m == weight.numel()


@pytest.mark.parametrize("shape", [(16, 8), (8, 4, 3, 3)])
def test_torch_prunes_the_same_weights(shape: tuple[int, ...]) -> None:
    for share in (0.1, 0.37, 0.9):
        weight = weights(*shape, seed=1)
        module = nn.Conv2d(4, 8, 3) if len(shape) > 2 else nn.Linear(8, 16)
        module.weight.data = weight.clone()
        found = mask(magnitude(weight), Sparsity("element", share))
        prune.l1_unstructured(module, "weight", amount=int((~found).sum()))
        assert torch.equal(module.weight_mask.bool(), found)

        module.weight_mask[:] = 1  # type: ignore[operator]
        prune.remove(module, "weight")
        found = mask(magnitude(weight), Sparsity("filter", share))
        zero = int((~found).sum()) // weight[0].numel()
        prune.ln_structured(module, "weight", amount=zero, n=2, dim=0)
        assert torch.equal(module.weight_mask.bool(), found)


def test_torch_prunes_as_many_of_each_layer_where_layers_compete() -> None:
    modules = {"first": nn.Linear(12, 8), "second": nn.Conv2d(2, 5, 3)}
    for seed, module in enumerate(modules.values()):
        module.weight.data = weights(*module.weight.shape, seed=seed) * (1 + seed)
    scores = {name: magnitude(module.weight) for name, module in modules.items()}
    for share in (0.1, 0.6):
        found = global_sparsity(scores, "element", share)
        prune.global_unstructured(
            [(module, "weight") for module in modules.values()], prune.L1Unstructured, amount=share
        )
        for name, module in modules.items():
            assert torch.equal(module.weight_mask.bool(), mask(scores[name], found[name]))
            module.weight_mask[:] = 1  # type: ignore[operator]
            prune.remove(module, "weight")


def test_the_schedule_is_the_papers_equation() -> None:
    """s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n Delta t))^3, in exact fractions."""
    for start, final, steps in [(0.0, 0.875, 100), (0.25, 0.5, 7), (0.5, 0.5, 3)]:
        first, last = Fraction(start), Fraction(final)
        shares = [cubic_share(start, final, step, steps) for step in range(steps + 3)]
        for step, share in enumerate(shares):
            exact = last + (first - last) * (1 - Fraction(min(step, steps), steps)) ** 3
            assert abs(share - exact) < 1e-15
        assert shares == sorted(shares)
        assert shares[0] == start
        assert shares[steps:] == [final] * 3
