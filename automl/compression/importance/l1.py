"""Sums of absolute weights: of the layers that read a unit, as AMC ranks them, or of those that make it."""

import numpy as np

from automl.compression.importance.base import FloatArray, ImportanceInputs
from automl.compression.importance.weights import Weights, making, reading, sum_of_shares


def magnitude(inputs: ImportanceInputs) -> dict[str, FloatArray]:
    """Sum of the absolute weights that read a unit, over the layers that consume it.

    He et al., "AMC: AutoML for Model Compression and Acceleration on Mobile Devices", ECCV 2018, rank the input
    channels of the next layer so. Where several layers read a group (a residual stream), each one's share is divided
    by its mean over the units, or a large layer would drown the others. A group that no layer reads is ranked by the
    weights that produce it.
    """
    read = sum_of_shares(inputs, reading(inputs), _absolute_sum)
    if all(scores.any() for scores in read.values()):
        return read
    made = l1(inputs)
    return {group: scores if scores.any() else made[group] for group, scores in read.items()}


def l1(inputs: ImportanceInputs) -> dict[str, FloatArray]:
    """Sum of the absolute weights of the filters that make a unit.

    Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.1. Where several layers make a group (a
    residual stream), see `sum_of_shares`.
    """
    return sum_of_shares(inputs, making(inputs), _absolute_sum)


def _absolute_sum(weights: Weights) -> FloatArray:
    sums: FloatArray = np.abs(weights).sum(axis=1, dtype=np.float64)
    return sums
