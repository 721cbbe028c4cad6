"""Gradient-boosted regression trees (Friedman, "Greedy function approximation: a gradient boosting machine", 2001)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.ensemble import GradientBoostingRegressor

from automl.predictors.base import FloatArray, IntArray, Predictor
from automl.predictors.encoding import balanced
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

    Its state is what it has learned from: trees are grown anew, to the same answers.

    Args:
        space: whose points they are.
        options: of the trees.
    """

    def __init__(self, space: SearchSpace, options: BoostedOptions = BoostedOptions()) -> None:
        super().__init__(space)
        self.options = options
        self._learned: tuple[IntArray, FloatArray, int] | None = None
        self._trees: Any = None

    def fit(self, points: IntArray, accuracies: FloatArray, seed: int) -> None:
        """See `Predictor`."""
        options = self.options
        self._learned = (points.copy(), accuracies.copy(), seed)
        rows = balanced(points)
        self._trees = GradientBoostingRegressor(
            n_estimators=options.trees,
            max_depth=options.depth,
            learning_rate=options.rate,
            subsample=max(options.share, 1.0 / len(rows)),  # a tree sees one at least
            random_state=seed,
        ).fit(self.encoding(points[rows]), accuracies[rows])

    def predict(self, points: IntArray) -> FloatArray:
        """See `Predictor`."""
        found: FloatArray = self._trees.predict(self.encoding(points))
        return found

    def state(self) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
        """What it has learned from."""
        if self._learned is None:
            return {}, {}
        points, accuracies, seed = self._learned
        return {"points": points, "accuracies": accuracies}, {"seed": seed}

    def restore(self, arrays: Mapping[str, np.ndarray[Any, Any]], values: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        if values:
            self.fit(arrays["points"], arrays["accuracies"], values["seed"])
