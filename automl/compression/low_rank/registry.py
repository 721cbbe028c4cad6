"""The low-rank methods by name."""

from automl.compression.low_rank.base import LowRankMethod
from automl.compression.low_rank.spatial_svd import SPATIAL_SVD
from automl.compression.low_rank.svd import SVD
from automl.compression.low_rank.tucker2 import TUCKER2

METHODS: dict[str, LowRankMethod] = {"svd": SVD, "spatial_svd": SPATIAL_SVD, "tucker2": TUCKER2}
"""The names of `search_spaces.factorisations.FACTORISATIONS`."""
