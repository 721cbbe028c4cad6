"""Zeros among the weights of a layer: which ones, at once or while it is trained. Their arithmetic, and what a pattern
is, stands in `search_spaces.sparsity`."""

from automl.compression.sparsity.allocation import global_sparsity
from automl.compression.sparsity.criteria import CRITERIA, Criterion, criterion, magnitude, score_weights, taylor
from automl.compression.sparsity.gradual import GradualSparsity, cubic_share
from automl.compression.sparsity.masks import atom_indices, mask

__all__ = [
    "CRITERIA",
    "Criterion",
    "GradualSparsity",
    "atom_indices",
    "criterion",
    "cubic_share",
    "global_sparsity",
    "magnitude",
    "mask",
    "score_weights",
    "taylor",
]
