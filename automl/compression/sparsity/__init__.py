"""Zeros among the weights of a layer: which ones, at once or while it is trained. Their arithmetic, and what a pattern
is, stands in `search_spaces.sparsity`."""

from automl.compression.sparsity.allocation import global_sparsity
from automl.compression.sparsity.criteria import CRITERIA, Criterion, magnitude, taylor, taylor_scores
from automl.compression.sparsity.gradual import GradualMasks, cubic_share
from automl.compression.sparsity.masks import atom_indices, mask

__all__ = [
    "CRITERIA",
    "Criterion",
    "GradualMasks",
    "atom_indices",
    "cubic_share",
    "global_sparsity",
    "magnitude",
    "mask",
    "taylor",
    "taylor_scores",
]
