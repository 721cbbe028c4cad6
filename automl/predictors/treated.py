"""What bits, zeros and ranks cost on top of an architecture whose accuracy is predicted.

Transferred as in APQ (Wang et al., "APQ: Joint Search for Network Architecture, Pruning and Quantization Policy", CVPR
2020), where a predictor that knows networks in float32 is fine-tuned on quantised ones. There are thousands of them
there, tens here, of more layers than that: so few can only say by which factor each choice makes the loss larger. That
losses multiply is what quantisation noise does, which adds up from layer to layer (Zhou et al., "Adaptive Quantization
for Deep Neural Network", AAAI 2018).
"""

import numpy as np
from scipy.optimize import nnls

from automl.predictors.base import FloatArray, IntArray, Predictor
from automl.predictors.encoding import OPEN
from search_spaces.space import ELASTIC, SearchSpace

SHARED, OWN, ARCHITECTURE = 1e-3, 1.0, 3.0
"""Ridges on what a choice costs in any layer, on what it costs in one beyond that, and on what is made good."""

BROKEN = 0.6
"""How fast networks count less as their loss grows, a power: what breaks one says little of those that are found."""


class Treated(Predictor):
    """The predicted loss of an architecture times a factor for each choice of its layers, fitted in logarithms.

    A loss is what an accuracy is short of a ceiling that no network reached. Choices cost at least nothing, which is a
    non-negative least squares problem; those of one kind share what they cost, as far as no layer says otherwise. The
    architecture's own decisions get factors as well, of either sign: they make good what its predictor does not know of
    the networks that are being found.

    On the supernet of `configs/glyphs_supernet.yaml`, 40 quantised samples beside 300 others: of 360 points that
    searches had found under two budgets, the 40 that were predicted best had accuracies of 89.0 and 90.6 % in the mean;
    by perceptrons that learned from both kinds together, 84.4 and 84.5 %.

    Args:
        space: whose points they are; it has decisions beside those of a supernet.
        architecture: predicts networks as the supernet has them, from points whose other decisions are open.
    """

    def __init__(self, space: SearchSpace, architecture: Predictor) -> None:
        super().__init__(space)
        self._float = architecture
        self._knows_float = False
        elastic = np.array([each.dimension in ELASTIC for each in space.decisions], dtype=np.bool_)
        self._treats, self._greatest = ~elastic, space.greatest
        counts = space.counts.tolist()
        self._first = np.repeat(np.cumsum([0, *counts[:-1]]), space.counts - 1)
        steps = [(place, number) for place, count in enumerate(counts) for number in range(1, count)]
        self._column = self._first + np.array([number for _, number in steps], dtype=np.int64)
        self._treatment = np.array([not elastic[place] for place, _ in steps], dtype=np.bool_)
        kinds = [(space.decisions[place].dimension, counts[place] - number) for place, number in steps]
        treated = [kind for kind, treats in zip(kinds, self._treatment.tolist(), strict=True) if treats]
        self._kinds = np.array(
            [[kind == other for other in sorted(set(treated))] for kind in treated], dtype=np.float64
        )
        self._ceiling, self._least, self._growth, self._offset = 0.0, 0.0, np.zeros(len(steps)), 0.0

    def fit(self, points: IntArray, accuracies: FloatArray, seed: int) -> None:
        """See `Predictor`.

        Architectures are known by points that leave bits and such open; where there are none, by those that change
        least, if most do; else all architectures lose the same at first.
        """
        open_ = (points == OPEN).any(axis=1)
        if not open_.any():
            least = (points == self._greatest)[:, self._treats].all(axis=1)
            open_ = least & (least.mean() > 0.5)
        known, best = accuracies[open_], float(accuracies.max())
        spread = float(np.ptp(known) if open_.any() else best - np.median(accuracies)) or 1e-3
        self._ceiling, self._least = best + spread, 0.1 * spread
        self._knows_float = bool(open_.any())
        if self._knows_float:
            self._float.fit(points[open_], known, seed)
        self._growth, self._offset = np.zeros(len(self._column)), 0.0
        if not open_.all():
            treated = points[~open_]
            self._learn(treated, np.log((self._ceiling - accuracies[~open_]) / self._losses(treated)))

    def predict(self, points: IntArray) -> FloatArray:
        """See `Predictor`."""
        grown = self._offset + self._lowered(points) @ self._growth
        found: FloatArray = self._ceiling - self._losses(points) * np.exp(grown)
        return found

    def _losses(self, points: IntArray) -> FloatArray:
        """Of the architectures of points [P, D], positive [P]."""
        if not self._knows_float:
            return np.full(len(points), self._least)
        predicted = self._float.predict(np.where(self._treats, OPEN, points))
        return np.maximum(self._ceiling - predicted, self._least)

    def _lowered(self, points: IntArray) -> FloatArray:
        """Of each decision and choice but the first whether less was taken, float64 [P, steps]; what is gone is not."""
        taken = self.encoding(points)
        return (taken[:, self._first] - taken[:, self._column]).astype(np.float64)

    def _learn(self, points: IntArray, growth: FloatArray) -> None:
        """From points and the logarithms of how many times their architectures' predicted losses they lose."""
        lowered = self._lowered(points)
        own, architecture = lowered[:, self._treatment], lowered[:, ~self._treatment]
        free = np.concatenate([architecture, np.ones((len(points), 1))], axis=1)  # of either sign
        columns = np.concatenate([own @ self._kinds, own, free, -free], axis=1)
        ridges = np.repeat(
            [SHARED, OWN, ARCHITECTURE, SHARED, ARCHITECTURE, SHARED],
            [self._kinds.shape[1], own.shape[1], *(2 * [architecture.shape[1], 1])],
        )
        weights = np.exp(-BROKEN * (growth - growth.min()))
        rows = np.concatenate([columns * weights[:, None] ** 0.5, np.diag(ridges**0.5)])
        found = nnls(rows, np.concatenate([growth * weights**0.5, np.zeros(len(ridges))]), maxiter=100 * len(ridges))[0]
        shared, treated, up, down = np.split(found, np.cumsum([self._kinds.shape[1], own.shape[1], free.shape[1]]))
        self._growth[self._treatment] = self._kinds @ shared + treated
        self._growth[~self._treatment] = (up - down)[:-1]
        self._offset = float((up - down)[-1])
