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
        self.points = points
        self.prior: FloatArray = np.log(np.maximum(total[:, 0], 1e-12))
        self.partial = partial.astype(np.float64)
        self.composition = np.where(total > 0.0, terms / np.maximum(total, 1e-300), 1.0 / terms.shape[1])
        self.by_choice = np.zeros((len(points), int(starts[-1])))
        np.put_along_axis(self.by_choice, starts[:-1] + points, self.composition, axis=1)


def _alike(first: _Rows, second: _Rows) -> FloatArray:
    """The parts of the covariance that do not depend on where rows stand on the smooth function's axis, [4, N, M]."""
    roots = np.sqrt(first.composition) @ np.sqrt(second.composition).T
    numbers: dict[bytes, int] = {}
    own, other = (
        np.array([numbers.setdefault(point.tobytes(), len(numbers)) for point in rows.points])
        for rows in (first, second)
    )
    return np.stack(
        [
            SHARED * first.composition @ second.composition.T + (1.0 - SHARED) * first.by_choice @ second.by_choice.T,
            np.exp((roots - 1.0) / LENGTH**2),
            own[:, None] == other,
            np.outer(first.partial, second.partial),
        ]
    )


def _smooth(at: FloatArray, other: FloatArray) -> FloatArray:
    """The covariance of the smooth function at [N] and [M]."""
    found: FloatArray = np.exp(-0.5 * ((at[:, None] - other) / BEND) ** 2)
    return found


class _Process:
    """Regression by a Gaussian process.

    Args:
        alike: see `_alike`, of the rows that were observed, [4, N, N].
        partial: 1 for those looked at on a share of the images, else 0, [N].
        at: where they stand on the smooth function's axis, [N].
        values: what was found, [N].
        tried: amplitudes; those of one value each stand, of others the likeliest are chosen, one part at a time.
    """

    def __init__(
        self, alike: FloatArray, partial: FloatArray, at: FloatArray, values: FloatArray, tried: Amplitudes
    ) -> None:
        self._partial, self._at, self._values = partial, at, values
        self._parts = np.concatenate([np.stack([np.ones_like(alike[0]), np.outer(at, at), _smooth(at, at)]), alike])
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

    def predicted(
        self, alike: FloatArray, composition: FloatArray, places: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Mean and variance at other rows, seen whole, without noise.

        Args:
            alike: of the rows that were observed and the others, [4, N, M].
            composition: of the others' additive loss, [M, D].
            places: where they may stand on the smooth function's axis, [K, M].

        Returns:
            [K, M] each.
        """
        constant, linear, bend, shared, together, own, _, _ = self.amplitudes
        anywhere = constant + np.tensordot(np.array(self.amplitudes[3:-1]), alike, 1)
        spread = constant + bend + shared * (composition**2).sum(axis=1) + together + own
        means, variances = [], []
        for at in places:
            cross = anywhere + np.outer(linear * self._at, at)
            if bend > 0.0:
                cross += bend * _smooth(self._at, at)
            half = solve_triangular(self._factor, cross, lower=True)
            means.append(cross.T @ self._weights)
            variances.append(np.maximum(spread + linear * at**2 - (half**2).sum(axis=0), 0.0))
        return np.stack(means), np.stack(variances)

    def _factored(self, amplitudes: Sequence[float]) -> FloatArray:
        matrix = np.tensordot(np.array(amplitudes[:-1]), self._parts, 1)
        matrix[np.diag_indices(len(matrix))] += JITTER + amplitudes[-1] * self._partial
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
        self._rows = rows = _Rows(losses, seen.points, seen.partial)
        alike = _alike(rows, rows)
        self._prior = float(rows.prior.mean())
        self._some = some = ~seen.alone
        self._divergence = _Process(
            alike[:, some][:, :, some],
            rows.partial[some],
            rows.prior[some] - self._prior,
            seen.losses[some] - rows.prior[some],
            tried[0],
        )
        self._middle, self._spread = float(seen.losses.mean()), float(seen.losses.std()) or 1.0
        self._level, self._scale = float(seen.accuracies.mean()), float(seen.accuracies.std()) or 1.0
        values = (seen.accuracies - self._level) / self._scale
        at = (seen.losses - self._middle) / self._spread
        self._accuracy = _Process(alike, rows.partial, at, values, tried[1])

    @property
    def amplitudes(self) -> list[list[list[float]]]:
        """Of both processes, as `tried` has them."""
        return [[[each] for each in process.amplitudes] for process in (self._divergence, self._accuracy)]

    def predicted(self, points: IntArray) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation of the accuracies of points [M, D], [M] each."""
        rows = _Rows(self._losses, points, np.zeros(len(points), dtype=np.bool_))
        alike, composition = _alike(self._rows, rows), rows.composition
        priors = (rows.prior - self._prior)[None]
        excess, doubt = self._divergence.predicted(alike[:, self._some], composition, priors)
        at, doubt = (rows.prior + excess[0] - self._middle) / self._spread, np.sqrt(doubt[0]) / self._spread
        means, variances = self._accuracy.predicted(alike, composition, at + np.outer(NODES, doubt))
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
