"""How many zeros each layer gets where all layers compete for them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from automl.compression.sparsity.masks import atom_indices
from search_spaces.errors import InputError
from search_spaces.sparsity import Sparsity, window_of


def global_sparsity(scores: Mapping[str, Tensor], pattern: str, share: float) -> dict[str, Sparsity]:
    """The sparsity of each layer when the atoms with the lowest mean scores of the whole network become zero.

    The mean, so that atoms of many weights and of few can be compared. Of each layer the best atom stays.

    Args:
        scores: of the weights by layer (see `automl.compression.sparsity.criteria`).
        pattern: of all of them; none of "N:M", whose share is given.
        share: of all these weights that become zero, to within an atom.

    Raises:
        InputError: the pattern does not fit a layer or leaves no choice; a score below 0 or NaN; nothing can be left
            out any more.
    """
    wanted = Sparsity(pattern, share)
    if window_of(pattern):
        raise InputError(f"of the pattern {pattern!r} every layer has the same share; choose another pattern")
    means, sizes, owners = [], [], []
    for index, (name, score) in enumerate(scores.items()):
        if not (score >= 0).all():
            raise InputError(f"layer {name!r}: the scores of weights are at least 0 and no NaN")
        try:
            places = atom_indices(score.shape, wanted).to(score.device)
        except InputError as error:
            raise InputError(f"layer {name!r}: {error}") from None
        mean = score.double().flatten()[places].mean(-1).flatten().cpu()
        mean[mean.argmax()] = torch.inf
        means.append(mean)
        sizes.append(torch.full((len(mean),), places.shape[-1]))
        owners.append(torch.full((len(mean),), index))
    if not means:
        return {}
    mean, size, owner = torch.cat(means), torch.cat(sizes), torch.cat(owners)
    worst = mean.sort(descending=True, stable=True).indices.flip(0)  # of equal ones the last
    gone = worst[size[worst].cumsum(0) <= share * float(size.sum()) + 0.5]
    if mean[gone].isinf().any():
        raise InputError(f"a sparsity of {share:g} leaves nothing of a layer; lower it, or leave small layers out")
    zeros = torch.bincount(owner[gone], minlength=len(means)).tolist()
    return {name: Sparsity(pattern, zero / len(atoms)) for name, zero, atoms in zip(scores, zeros, means, strict=True)}
