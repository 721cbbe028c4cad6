"""Points of a search space as the features of a predictor."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from automl.predictors.samples import Sample
from search_spaces.errors import InputError
from search_spaces.space import ELASTIC, SearchSpace

IntArray = npt.NDArray[np.int64]

OPEN = -1
"""Of a point, where nothing is said of a decision: what it is about stays as it is, as in no choice of the space."""


class Encoding:
    """A feature for every choice of every decision: whether at least that choice was taken.

    OFA codes choices as one-hot vectors (Cai et al. 2020). Choices stand in the order of their cost, and a unary code
    knows it: what was learned of one choice is known of those above it. With 200 to 400 samples of a space like that of
    ResNet-20 this raises rank correlations, by 0.01 where they are high and by 0.09 where they are low. As with OFA's
    there are zeros alone where a decision means nothing, because its block is left out. One that is open is coded as
    its last choice, which changes least.

    Args:
        space: whose points are encoded.

    Attributes:
        width: number of features F.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._owners = np.repeat(np.arange(len(space.counts)), space.counts)
        starts = np.cumsum([0, *space.counts.tolist()[:-1]])
        self._choices = np.arange(len(self._owners)) - starts[self._owners]
        self.width = len(self._owners)

    def __call__(self, points: IntArray) -> npt.NDArray[np.float32]:
        """Features of points [P, D], float32 [P, F]."""
        closed = np.where(points == OPEN, self._space.greatest, points)
        said = np.where(self._space.depths.active(closed), closed, -1)
        features: npt.NDArray[np.float32] = (said[:, self._owners] >= self._choices).astype(np.float32)
        return features


def encoded(space: SearchSpace, samples: Sequence[Sample]) -> tuple[IntArray, npt.NDArray[np.float64]]:
    """The samples that a predictor of the space can learn from: points int64 [P, D] and their accuracies [P].

    A sub-network as a supernet has it says nothing of bits, zeros and ranks: where the space decides on them and has no
    choice that leaves a layer as it is, these decisions are open. Samples of other spaces are left out.
    """
    architecture = space.elastic
    elastic = np.array([each.dimension in ELASTIC for each in space.decisions], dtype=np.bool_)
    points, accuracies = [], []
    for sample in samples:
        try:
            point = space.encode(sample.policy)
        except InputError:
            try:
                said = architecture.encode(sample.policy)
            except InputError:
                continue
            point = np.full(len(elastic), OPEN, dtype=np.int64)
            point[elastic] = said
        points.append(point)
        accuracies.append(sample.accuracy)
    return np.array(points, dtype=np.int64).reshape(-1, len(elastic)), np.array(accuracies, dtype=np.float64)
