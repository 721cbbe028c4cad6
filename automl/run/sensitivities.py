"""Losses by the curvature of the loss, which a run computes once and keeps beside its searches."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from automl.compression import Compressor
from automl.compression.curvature import curvature_losses
from automl.problem import Problem, calibration_data
from automl.run.directory import write_json
from backends.layer_prices import FloatArray

IMAGES = 256
"""Training images that the Hessian's trace is estimated on; its error falls with their root."""


def losses_by_curvature(problem: Problem, compressor: Compressor) -> list[FloatArray]:
    """The loss of every choice of every decision of a problem; see `automl.compression.curvature`."""
    images, labels = calibration_data(problem.data, IMAGES, problem.config.compression.seed)
    return curvature_losses(compressor, problem.space, images, labels)


def kept_losses(path: Path, compute: Callable[[], Sequence[FloatArray]]) -> list[FloatArray]:
    """The losses that a file holds; computed and written where it holds none."""
    try:
        return [np.array(losses, dtype=np.float64) for losses in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError):
        found = [np.asarray(losses) for losses in compute()]
    write_json(path, [losses.tolist() for losses in found])
    return found
