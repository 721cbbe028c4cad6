"""Gradient-boosted regression trees (Friedman, "Greedy function approximation: a gradient boosting machine", 2001)."""

from dataclasses import dataclass
from typing import Any

from sklearn.ensemble import GradientBoostingRegressor

from automl.predictors.base import FloatArray, IntArray, Predictor
from search_spaces.errors import InputError
from search_spaces.space import SearchSpace


@dataclass(frozen=True)
class BoostedOptions:
    """What can be set.

    Attributes:
        trees: how many.
        depth: of each: so many decisions can act together.
        rate: that each tree's answer is shrunk by.
        share: of the samples that each tree sees.
    """

    trees: int = 400
    depth: int = 3
    rate: float = 0.05
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.trees < 1 or self.depth < 1:
            raise InputError(f"boosted: trees and depth are at least 1, got {self.trees} and {self.depth}")
        if not (self.rate > 0.0 and 0.0 < self.share <= 1.0):
            raise InputError(f"boosted: rate is above 0, share in (0, 1], got {self.rate} and {self.share}")


class Boosted(Predictor):
    """Trees, each fitted to what those before it leave over.

    Args:
        space: whose points they are.
        options: of the trees.
    """

    def __init__(self, space: SearchSpace, options: BoostedOptions = BoostedOptions()) -> None:
        super().__init__(space)
        self.options = options
        self._trees: Any = None

    def fit(self, points: IntArray, accuracies: FloatArray, seed: int) -> None:
        """See `Predictor`."""
        options = self.options
        self._trees = GradientBoostingRegressor(
            n_estimators=options.trees,
            max_depth=options.depth,
            learning_rate=options.rate,
            subsample=max(options.share, 1.0 / len(points)),  # a tree sees one at least
            random_state=seed,
        ).fit(self.encoding(points), accuracies)

    def predict(self, points: IntArray) -> FloatArray:
        """See `Predictor`."""
        found: FloatArray = self._trees.predict(self.encoding(points))
        return found
