"""From the scores of weights to a mask: the atoms of a pattern with the highest scores stay."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from search_spaces.errors import InputError
from search_spaces.sparsity import Sparsity, block_of, window_of


def atom_indices(shape: Sequence[int], sparsity: Sparsity) -> Tensor:
    """Where the weights of each atom stand in the flattened weight tensor: int64 [rows, columns, weights of an atom].

    Rows and columns are those of `Sparsity.grid`; their order is that of an index (see `automl.compression.packing`).
    A new pattern is a case here and one in `Sparsity.grid`.

    Args:
        shape: [out, in / groups, *kernel].
        sparsity: its pattern alone matters.

    Raises:
        InputError: the pattern does not fit the shape.
    """
    rows, columns = sparsity.grid(shape)
    places = torch.arange(prod(shape)).reshape(tuple(shape))
    if block := block_of(sparsity.pattern):
        places = places.reshape(rows, block[0], columns, block[1]).transpose(1, 2)
    elif window_of(sparsity.pattern):
        places = places.movedim(1, -1)  # neighbours among the input channels
    elif sparsity.pattern == "column":
        places = places.transpose(-2, -1)
    return places.reshape(rows, columns, -1)


def mask(scores: Tensor, sparsity: Sparsity, within: Tensor | None = None) -> Tensor:
    """Which weights stay: bool like the scores, True where one does. An atom's score is the sum of its weights'.

    Exactly `sparsity.atoms(shape)` atoms go, of equal scores the later ones, and of "N:M" M - N in every window. No
    other mask of the pattern keeps a higher sum of scores.

    Args:
        scores: at least 0, like the weight [out, in / groups, *kernel]; see `automl.compression.sparsity.criteria`.
        sparsity: of the weight.
        within: an earlier mask of the same pattern, whose zeros stay zeros; None where there is none.

    Raises:
        InputError: a score below 0 or NaN, the pattern does not fit the shape, nothing would be left, or an earlier
            mask that leaves fewer atoms or is of another shape.
    """
    if not (scores >= 0).all():  # nan is not, either
        raise InputError("the scores of weights are at least 0 and no NaN; are there NaN among weights or gradients?")
    total, zero = sparsity.atoms(scores.shape)
    places = atom_indices(scores.shape, sparsity).to(scores.device)
    atoms = scores.double().flatten()[places].sum(-1)
    if within is not None:
        if within.shape != scores.shape:
            raise InputError(f"an earlier mask is like its scores {list(scores.shape)}, got {list(within.shape)}")
        atoms = atoms.masked_fill(~within.flatten()[places].all(-1), -1.0)  # after all that may stay
    # rows of atoms that compete with each other: of a window alone, or all of them
    rivals = atoms if window_of(sparsity.pattern) else atoms.reshape(1, total)
    best = rivals.sort(dim=1, descending=True, stable=True).indices[:, : (total - zero) // len(rivals)]
    stay = torch.zeros_like(rivals, dtype=torch.bool).scatter_(1, best, True)
    if (stay & (rivals < 0)).any():
        raise InputError(
            f"the earlier mask leaves fewer atoms than a sparsity of {sparsity.share:g} does; zeros do not come back, "
            "raise it"
        )
    found = torch.empty(scores.numel(), dtype=torch.bool, device=scores.device)
    found[places] = stay.reshape(*places.shape[:2], 1).expand_as(places)
    return found.reshape(scores.shape)
