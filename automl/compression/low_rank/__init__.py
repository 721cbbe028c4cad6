"""Low rank: a layer's weights as a product of smaller ones, computed as a plain sequence of layers.

| method | in place of a convolution k x k | paper |
|---|---|---|
| "svd" | k x k to the rank, then 1 x 1; of a linear layer two linear layers | Eckart & Young 1936 |
| "spatial_svd" | k x 1 to the rank, then 1 x k | Jaderberg et al. 2014 |
| "tucker2" | 1 x 1 to the first rank, k x k to the second, then 1 x 1 | Kim et al. 2016 |

What each does to shapes stands in `search_spaces.factorisations`, under the same names. Another method is an entry
there, a `LowRankMethod` in `METHODS`, and one subclass of the kit in `automl.testing.factorisations`.
"""

from automl.compression.low_rank.base import LowRankMethod, factor_matrix
from automl.compression.low_rank.layer import factorise, layer_spec
from automl.compression.low_rank.ranks import rank_by_energy, rank_by_ratio
from automl.compression.low_rank.registry import METHODS

__all__ = [
    "METHODS",
    "LowRankMethod",
    "factor_matrix",
    "factorise",
    "layer_spec",
    "rank_by_energy",
    "rank_by_ratio",
]
