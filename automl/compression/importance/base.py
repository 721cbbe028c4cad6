"""What a criterion of importance is, and what it may look at."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from automl.compression.calibration import check_images, check_labels, draw
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ImportanceInputs:
    """What a criterion may look at; it changes none of it.

    Attributes:
        network: the captured network.
        original: its layers with their weights, under their names; in eval mode.
        images: of calibration, [N, *input shape]; None where there are none.
        labels: of the images, [N]; None where there are none.
        seed: of whatever a criterion draws.
        limit: most images that are looked at; None for all.
    """

    network: PrunableNetwork
    original: nn.Module
    images: Tensor | None = None
    labels: Tensor | None = None
    seed: int = 0
    limit: int | None = None

    def calibration(self) -> tuple[Tensor, Tensor]:
        """Images and labels, checked; where there are more than `limit`, that many drawn by the seed.

        Raises:
            InputError: there are none, or they do not fit the network or each other.
        """
        if self.images is None or self.labels is None:
            lacking = "images" if self.images is None else "labels"
            raise InputError(
                f"this importance needs calibration images with labels, got no {lacking}; give both, or choose an "
                "importance that needs none, like 'magnitude'"
            )
        images = check_images(self.images, self.network.graph)
        labels = check_labels(self.labels, images)
        if self.limit is None or len(images) <= self.limit:
            return images, labels
        chosen = draw(len(images), self.limit, self.seed)
        return images[chosen], labels[chosen]


Score = Callable[[ImportanceInputs], Mapping[str, FloatArray]]
"""Group name -> importance of each of its units [width]; where a unit is worth more, its number is larger. A group that
is left out cannot be pruned."""


def by_mean(scores: FloatArray) -> FloatArray:
    """Relative to the mean size of the group's scores; zeros stay zeros."""
    mean = float(np.abs(scores).mean())
    return scores / mean if mean else scores


def by_norm(scores: FloatArray) -> FloatArray:
    """Relative to the l2 norm of the group, as Molchanov et al. 2017 normalise layers; zeros stay zeros."""
    norm = float(np.linalg.norm(scores))
    return scores / norm if norm else scores


def as_they_are(scores: FloatArray) -> FloatArray:
    """For scores of one scale in all groups."""
    return scores


@dataclass(frozen=True)
class Criterion:
    """A way to tell how important units are.

    Attributes:
        score: see `Score`.
        across: makes the scores of one group comparable with those of another; it keeps their order.
        labelled: whether it needs calibration images and labels; a run draws them for those that do.
        unranked: why a group may have no scores, for whoever wants to prune one.
    """

    score: Score
    across: Callable[[FloatArray], FloatArray] = by_mean
    labelled: bool = False
    unranked: str = "it gives them no scores"
