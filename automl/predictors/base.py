"""The interface of accuracy predictors."""

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

from automl.predictors.encoding import Encoding
from search_spaces.space import SearchSpace

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class Predictor(ABC):
    """Predicts the accuracies of points.

    What is learned from may leave decisions open (see `encoding`), such as the bits of networks in float32 where the
    space has no such choice. Everything random comes from the seed that `fit` is given.

    Args:
        space: whose points they are.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.encoding = Encoding(space)

    @abstractmethod
    def fit(self, points: IntArray, accuracies: FloatArray, seed: int) -> None:
        """Learn from points [P, D] and their accuracies [P], at least one, and forget what was learned before."""

    @abstractmethod
    def predict(self, points: IntArray) -> FloatArray:
        """Accuracies of points [P, D], float64 [P]; not bounded to [0, 1], since their order is what counts."""
