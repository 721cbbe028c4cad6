"""What searches want to know of the network before they start, which a run computes once and keeps beside them.

It is a number for every choice of every decision: for "exact" what it should lose by the curvature of the loss, for
"gradient" the logit that training gives it.
"""

from collections.abc import Callable
from math import prod
from pathlib import Path
from time import perf_counter

import torch

from automl.batches import calibration_data
from automl.compression import Compressor
from automl.compression.curvature import curvature_losses
from automl.costs.expected import ExpectedCosts, expected_costs
from automl.costs.pricing import LatencyBackend, point_prices
from automl.problem import Problem
from automl.run.directory import write_json
from automl.searchers.options import parse_options
from automl.searchers.points.gradient import GradientOptions
from automl.searchers.prior import Prior
from automl.supernet.architecture import trained_logits
from automl.supernet.relaxation import Relaxation
from backends.base import HardwareBackend
from backends.layer_prices import FloatArray

IMAGES = 256
"""Training images that the Hessian's trace is estimated on; its error falls with their root."""
HESSIAN_PASSES = 3 + 8 * 4
"""Forward passes that the trace takes on an image: one and its gradient, and eight gradients of that."""
TRAINING_BYTES = 2**28
"""Of the training images that logits are trained on."""
BATCH = 256


def costs_for_prior(problem: Problem, backend: HardwareBackend | LatencyBackend) -> ExpectedCosts | None:
    """The expected costs that a problem's searches are prepared under; None where they do not ask.

    Args:
        problem: whose budgets they are compared with.
        backend: that prices its policies.
    """
    how = problem.config.search
    if how.algorithm != "gradient":
        return None
    return expected_costs(point_prices(problem.space, backend), problem.held_back, how.seeds[0])


def compute_prior(problem: Problem, compressor: Compressor, costs: ExpectedCosts | None) -> Prior:
    """What the searches of a problem want to know, see `automl.orchestration.searches.wants_prior`.

    Args:
        problem: of the run.
        compressor: of its policies.
        costs: what `costs_for_prior` gave.
    """
    started = perf_counter()
    values, images = _losses(problem, compressor) if costs is None else _logits(problem, compressor, costs)
    return Prior(values, images, perf_counter() - started)


def kept_prior(path: Path, compute: Callable[[], Prior]) -> Prior:
    """What a file holds; computed and written where it holds nothing."""
    found = Prior.read(path)
    if found is None:
        found = compute()
        write_json(path, found.to_json())
    return found


def _losses(problem: Problem, compressor: Compressor) -> tuple[list[FloatArray], int]:
    images, labels = calibration_data(problem.data, IMAGES, problem.config.compression.seed)
    return curvature_losses(compressor, problem.space, images, labels), HESSIAN_PASSES * len(images)


def _logits(problem: Problem, compressor: Compressor, costs: ExpectedCosts) -> tuple[list[FloatArray], int]:
    how = problem.config.search
    options, seed = parse_options(GradientOptions(), "gradient", how.options), how.seeds[0]
    most = TRAINING_BYTES // (4 * prod(problem.data.input_shape))
    images, _ = calibration_data(problem.data, max(options.batch, min(options.steps * options.batch, most)), seed)
    whole = problem.network.prune({})
    with torch.no_grad():
        answers = torch.cat([whole(batch) for batch in torch.split(images, BATCH)])
    relaxation = Relaxation(compressor, problem.space)
    values = trained_logits(relaxation, costs, images, answers, options, seed)
    return values, len(images) + 3 * options.steps * min(options.batch, len(images)) * relaxation.paths
