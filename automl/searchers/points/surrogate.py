"""What is known of points that were not evaluated: Gaussian processes whose prior is the additive model.

Two of them (Rasmussen and Williams, "Gaussian processes for machine learning", 2006). The first knows the logarithm of
the divergence, or where none is known of the accuracy lost: that of the additive loss, plus what the sensitivities have
wrong, decision by decision and choice by choice, plus what decisions do together. The second knows the accuracy, a
smooth function of that logarithm, plus what is peculiar to a point. Looks at a share of the images are observations
with noise and an offset of their own (several fidelities in one process: Kennedy and O'Hagan, "Predicting the output
from a complex computer code when fast approximations are available", 2000).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.special import ndtr

from automl.searchers.points.sensitivity import additive

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

SHARED = 0.5
"""Part of what a sensitivity has wrong that all choices of its decision share."""
LENGTH = 0.35
"""Distance of two compositions of loss at which they still have much in common; two without any are sqrt(2) apart."""
BEND = 1.0
"""Length of the smooth function that makes an accuracy of a divergence, in standard deviations of its logarithm."""
JITTER = 1e-6
NODES, WEIGHTS = (0.0, 1.7320508075688772, -1.7320508075688772), (2 / 3, 1 / 6, 1 / 6)  # Gauss-Hermite, three nodes

Amplitudes = Sequence[Sequence[float]]
"""Of each part of a covariance, and last the noise of a look at a share of the images: the values that are tried."""
OF_DIVERGENCE: Amplitudes = (
    (4.0,),  # a constant
    (0.05,),  # the exponent of the additive loss: 1, give or take
    (0.0,),
    (0.03, 0.1, 0.3, 1.0),  # the sensitivities
    (0.003, 0.02, 0.1),  # what decisions do together
    (0.001, 0.01, 0.05, 0.3),  # what is peculiar to a point
    (0.01,),  # the offset of a share
    (0.002, 0.02, 0.1, 0.5),
)
OF_ACCURACY: Amplitudes = (  # in variances of the accuracies
    (4.0,),
    (1.0,),
    (0.03, 0.3),
    (0.001, 0.01, 0.1),
    (0.001, 0.01, 0.05),
    (0.003, 0.02, 0.1),
    (0.1,),
    (0.01, 0.05, 0.2),
)


@dataclass(frozen=True)
class Observations:
    """What was found.

    Attributes:
        points: [N, D].
        partial: which were looked at on a share of the images, [N].
        losses: the logarithms of their divergences, or of what else they lost, [N].
        accuracies: [N].
        alone: where one decision alone was changed, [N]: what the additive model is made of says nothing of its faults.
    """

    points: IntArray
    partial: BoolArray
    alone: BoolArray
    losses: FloatArray
    accuracies: FloatArray


class _Rows:
    """Points as the covariance sees them."""

    def __init__(self, losses: Sequence[FloatArray], points: IntArray, partial: BoolArray) -> None:
        terms = additive(losses, points)
        total = terms.sum(axis=1, keepdims=True)
        starts = np.cumsum([0, *(len(loss) for loss in losses)])
        places = starts[:-1] + points
        self.prior: FloatArray = np.log(np.maximum(total[:, 0], 1e-12))
        self.partial = partial.astype(np.float64)
        self.composition = np.where(total > 0.0, terms / np.maximum(total, 1e-300), 1.0 / terms.shape[1])
        self.choices = np.zeros((len(points), int(starts[-1])))  # 1 for each that is taken
        np.put_along_axis(self.choices, places, 1.0, axis=1)
        self.by_choice = np.zeros_like(self.choices)
        np.put_along_axis(self.by_choice, places, self.composition, axis=1)


def _covariances(first: _Rows, at: FloatArray, second: _Rows, other: FloatArray) -> FloatArray:
    """The parts of the covariance, [7, N, M], of rows that stand at [N] and [M] on the smooth function's axis."""
    weighed = SHARED * first.composition @ second.composition.T + (1.0 - SHARED) * first.by_choice @ second.by_choice.T
    roots = np.sqrt(first.composition) @ np.sqrt(second.composition).T
    step = (at[:, None] - other[None]) / BEND
    return np.stack(
        [
            np.ones_like(weighed),
            np.outer(at, other),
            np.exp(-0.5 * step**2),
            weighed,
            np.exp(-(1.0 - roots) / LENGTH**2),
            (first.choices @ second.choices.T >= first.composition.shape[1] - 0.5).astype(np.float64),
            np.outer(first.partial, second.partial),
        ]
    )


def _variances(rows: _Rows, at: FloatArray) -> FloatArray:
    """The diagonals of the same, [7, N]."""
    one = np.ones(len(at))
    return np.stack([one, at**2, one, (rows.composition**2).sum(axis=1), one, one, rows.partial])


class _Process:
    """Regression by a Gaussian process.

    Args:
        rows: what was observed.
        at: where it stands on the smooth function's axis, [N].
        values: what was found, [N].
        tried: amplitudes; those of one value each stand, of others the likeliest are chosen, one part at a time.
    """

    def __init__(self, rows: _Rows, at: FloatArray, values: FloatArray, tried: Amplitudes) -> None:
        self._rows, self._at, self._values = rows, at, values
        self._parts = _covariances(rows, at, rows, at)
        chosen = [each[len(each) // 2] for each in tried]
        open_ = [(place, value) for place, each in enumerate(tried) if len(each) > 1 for value in each]
        best = self._likelihood(chosen) if open_ else 0.0
        for place, value in open_:
            others = [*chosen[:place], value, *chosen[place + 1 :]]
            if others != chosen and (found := self._likelihood(others)) > best:
                best, chosen = found, others
        self.amplitudes = chosen
        self._factor = self._factored(chosen)
        self._weights: FloatArray = cho_solve((self._factor, True), values)

    def predicted(self, rows: _Rows, at: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and variance at other rows, without noise, [M] each."""
        amplitudes = np.array(self.amplitudes[:-1])
        cross = np.tensordot(amplitudes, _covariances(self._rows, self._at, rows, at), 1)
        half = solve_triangular(self._factor, cross, lower=True)
        variance = amplitudes @ _variances(rows, at) - (half**2).sum(axis=0)
        return cross.T @ self._weights, np.maximum(variance, 0.0)

    def _factored(self, amplitudes: Sequence[float]) -> FloatArray:
        matrix = np.tensordot(np.array(amplitudes[:-1]), self._parts, 1)
        matrix[np.diag_indices(len(matrix))] += JITTER + amplitudes[-1] * self._rows.partial
        factor: FloatArray = cho_factor(matrix, lower=True)[0]
        return factor

    def _likelihood(self, amplitudes: Sequence[float]) -> float:
        factor = self._factored(amplitudes)
        half = solve_triangular(factor, self._values, lower=True)
        return float(-0.5 * half @ half - np.log(np.diag(factor)).sum())


class Surrogate:
    """Predicts accuracies on all images.

    Args:
        losses: of every choice of every decision, see `sensitivity.additive_losses`.
        seen: what was found so far, two points at least.
        tried: amplitudes of the two processes; those of an earlier one, where they shall not be chosen anew.
    """

    def __init__(
        self,
        losses: Sequence[FloatArray],
        seen: Observations,
        tried: Sequence[Amplitudes] = (OF_DIVERGENCE, OF_ACCURACY),
    ) -> None:
        self._losses = losses
        rows = _Rows(losses, seen.points, seen.partial)
        self._prior = float(rows.prior.mean())
        some = ~seen.alone
        later = _Rows(losses, seen.points[some], seen.partial[some])
        excess = seen.losses[some] - later.prior
        self._divergence = _Process(later, later.prior - self._prior, excess, tried[0])
        self._middle, self._spread = float(seen.losses.mean()), float(seen.losses.std()) or 1.0
        self._level, self._scale = float(seen.accuracies.mean()), float(seen.accuracies.std()) or 1.0
        values = (seen.accuracies - self._level) / self._scale
        self._accuracy = _Process(rows, (seen.losses - self._middle) / self._spread, values, tried[1])

    @property
    def amplitudes(self) -> list[list[list[float]]]:
        """Of both processes, as `tried` has them."""
        return [[[each] for each in process.amplitudes] for process in (self._divergence, self._accuracy)]

    def predicted(self, points: IntArray) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation of the accuracies of points [M, D], [M] each."""
        rows = _Rows(self._losses, points, np.zeros(len(points), dtype=np.bool_))
        excess, doubt = self._divergence.predicted(rows, rows.prior - self._prior)
        at, doubt = (rows.prior + excess - self._middle) / self._spread, np.sqrt(doubt) / self._spread
        found = [self._accuracy.predicted(rows, at + node * doubt) for node in NODES]
        means, variances = (np.array(side) for side in zip(*found, strict=True))
        weights = np.array(WEIGHTS)
        mean = weights @ means
        variance = weights @ (variances + (means - mean) ** 2)
        return self._level + self._scale * mean, self._scale * np.sqrt(variance)


def improvement(mean: FloatArray, deviation: FloatArray, best: float) -> FloatArray:
    """By how much a normally distributed accuracy is expected to be better than the best so far.

    Mockus, "On Bayesian methods for seeking the extremum", 1974.
    """
    score = (mean - best) / np.maximum(deviation, 1e-12)
    density = np.exp(-0.5 * score**2) / np.sqrt(2.0 * np.pi)
    found: FloatArray = deviation * (score * ndtr(score) + density)
    return found
