"""The Euclidean norm of the filters that make a unit."""

import numpy as np

from automl.compression.importance.base import FloatArray, ImportanceInputs
from automl.compression.importance.weights import Weights, making, sum_of_shares


def l2(inputs: ImportanceInputs) -> dict[str, FloatArray]:
    """Euclidean norm of the filters that make a unit.

    He et al., "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks", IJCAI 2018, with p = 2.
    Where several layers make a group (a residual stream), see `sum_of_shares`.
    """
    return sum_of_shares(inputs, making(inputs), _norm)


def _norm(weights: Weights) -> FloatArray:
    norms: FloatArray = np.sqrt(np.square(weights, dtype=np.float64).sum(axis=1))
    return norms
