"""How well a predictor knows sub-networks that it has not learned from."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau, spearmanr

from search_spaces.errors import InputError

FloatArray = npt.NDArray[np.float64]

FEWEST = 3
"""Sub-networks that a rank correlation says anything of."""


@dataclass(frozen=True)
class Quality:
    """Predicted against found accuracies.

    Attributes:
        count: of sub-networks that they are known of.
        spearman: rank correlation in [-1, 1].
        kendall: tau-b, the share of pairs in the right order less that of those in the wrong one.
        rmse: root of the mean squared error, in units of accuracy.
    """

    count: int
    spearman: float
    kendall: float
    rmse: float


def quality(predicted: FloatArray, found: FloatArray) -> Quality:
    """How well predictions [P] agree with what was found [P].

    Where all predictions or all accuracies are the same, nothing is ranked: the correlations are 0.

    Raises:
        InputError: of too few sub-networks, or of another number of each.
    """
    if len(predicted) != len(found) or len(found) < FEWEST:
        raise InputError(
            f"predictions are compared with at least {FEWEST} accuracies, one each, got {len(predicted)} and "
            f"{len(found)}; evaluate more sub-networks"
        )
    rmse = float(np.sqrt(np.mean((predicted - found) ** 2)))
    if np.ptp(predicted) == 0.0 or np.ptp(found) == 0.0:
        return Quality(len(found), 0.0, 0.0, rmse)
    rank, tau = (float(correlation(predicted, found).statistic) for correlation in (spearmanr, kendalltau))
    return Quality(len(found), rank, tau, rmse)
