"""How far a unit's filters are from the geometric median: the nearest ones say what others say too."""

import torch

from automl.compression.importance.base import FloatArray, ImportanceInputs
from automl.compression.importance.weights import Weights, making, sum_of_shares


def geometric_median(inputs: ImportanceInputs) -> dict[str, FloatArray]:
    """Sum of the Euclidean distances from a unit's filters to those of all others in the layer.

    He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration", CVPR 2019
    (FPGM). The sum is least at the geometric median, so the filters nearest to it come last: what
    they do, the others can take over. A small norm is no reason to go. Where several layers make a group (a residual
    stream), see `sum_of_shares`.
    """
    return sum_of_shares(inputs, making(inputs), distances)


def distances(filters: Weights) -> FloatArray:
    """[filters, weights] -> sum of each one's distances to the others [filters], in double precision."""
    rows = torch.from_numpy(filters).double()
    total: FloatArray = torch.cdist(rows, rows).sum(1).numpy()
    return total
