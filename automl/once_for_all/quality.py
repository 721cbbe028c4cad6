"""How well a predictor that learned from a supernet's samples ranks the sub-networks that were held out."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from automl.predictors import make_predictor
from automl.predictors.quality import FEWEST, quality
from automl.predictors.samples import Sample
from automl.supernet.network import elastic_space
from search_spaces.space import SearchSpace


def judged(kind: str, space: SearchSpace, samples: Sequence[Sample], seed: int) -> dict[str, Any]:
    """What `predictor.json` holds: counts, rank correlations, and both accuracies of the sub-networks held out.

    Args:
        kind: of predictor.
        space: of the supernet; decisions on bits, zeros and ranks are left alone.
        samples: to learn from, and held out; the correlations are null where there are too few of either.
        seed: of the fit.
    """
    learned, held_out = ([each for each in samples if each.held_out is held] for held in (False, True))
    found: dict[str, Any] = {"kind": kind, "samples": len(learned), "held_out": len(held_out)}
    unknown: dict[str, Any] = dict.fromkeys(("spearman", "kendall", "rmse"))
    if not learned or len(held_out) < FEWEST:
        return {**found, **unknown, "predicted": [], "accuracies": []}
    elastic = elastic_space(space)
    predictor = make_predictor(kind, elastic)
    points = [np.array([elastic.encode(each.policy) for each in part]) for part in (learned, held_out)]
    accuracies = [np.array([each.accuracy for each in part]) for part in (learned, held_out)]
    predictor.fit(points[0], accuracies[0], seed)
    predicted = predictor.predict(points[1])
    figures = asdict(quality(predicted, accuracies[1]))
    del figures["count"]
    return {**found, **figures, "predicted": predicted.tolist(), "accuracies": accuracies[1].tolist()}
