"""What searches want to know of the network before they start, which a run computes once and keeps beside them.

It is a number for every choice of every decision: what it should lose by the curvature of the loss.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from automl.batches import calibration_data
from automl.compression import Compressor
from automl.compression.curvature import curvature_losses
from automl.problem import Problem
from automl.run.directory import write_json
from backends.layer_prices import FloatArray

IMAGES = 256
"""Training images that the Hessian's trace is estimated on; its error falls with their root."""


def prior(problem: Problem, compressor: Compressor) -> list[FloatArray]:
    """What the searches of a problem want to know, see `automl.orchestration.searches.wants_prior`."""
    images, labels = calibration_data(problem.data, IMAGES, problem.config.compression.seed)
    return curvature_losses(compressor, problem.space, images, labels)


def kept_prior(path: Path, compute: Callable[[], Sequence[FloatArray]]) -> list[FloatArray]:
    """The numbers that a file holds; computed and written where it holds none."""
    try:
        return [np.array(numbers, dtype=np.float64) for numbers in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError):
        found = [np.asarray(numbers) for numbers in compute()]
    write_json(path, [numbers.tolist() for numbers in found])
    return found
