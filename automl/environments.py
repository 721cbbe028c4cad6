"""The arguments of the environments that a config's problem has."""

from collections.abc import Mapping
from typing import Any

from torch.utils.data import Subset

from automl.batches import calibration_data
from automl.compression.calibration import draw
from automl.compression.pipeline import Compressor
from automl.configured import compression_options
from automl.costs.pricing import point_prices
from automl.errors import InputError, did_you_mean
from automl.evaluation import PolicyEvaluator
from automl.problem import Problem
from backends.accelerators.backend import AcceleratorBackend
from backends.bit_prices import BitPrice, accelerator_price, counted_price, network_price
from search_spaces.objective import COUNTED, MODELLED


def channel_pruning(problem: Problem, options: Mapping[str, Any]) -> dict[str, Any]:
    """Of "trimtab/ChannelPruning-v0"."""
    how = problem.config.search
    arguments = {
        "graph": problem.graph,
        "space": problem.space.channels,
        "constraint": problem.constraint,
        "mode": how.mode,
        "reward": problem.config.reward_name,
        "faithful": how.faithful,
        "cost": problem.cost,
        **options,
    }
    return arguments if "evaluator" in options else {**arguments, "evaluator": problem.evaluator()}


def mixed_precision(problem: Problem, options: Mapping[str, Any]) -> dict[str, Any]:
    """Of "trimtab/MixedPrecision-v0"; where it is faithful, accuracy is that of training images."""
    arguments = {
        **_bits(problem),
        "graph": problem.graph,
        "price": bit_price(problem),
        "limit": problem.constraint.limit,
        "faithful": problem.config.search.faithful,
        **options,
    }
    if "evaluator" not in arguments:
        arguments["evaluator"] = _evaluator(problem, training_images=bool(arguments["faithful"]))
    return arguments


def joint(problem: Problem, options: Mapping[str, Any]) -> dict[str, Any]:
    """Of "trimtab/Joint-v0", and of "trimtab/LowRank-v0".

    Raises:
        InputError: the mode has no budget to keep.
    """
    config = problem.config
    if config.search.mode != "resource":
        raise InputError(f"the environments Joint and LowRank keep budgets, got search.mode {config.search.mode!r}")
    arguments = {
        "space": problem.space,
        "constraints": problem.constraints,
        "prices": point_prices(problem.space, problem.backend),
        "reward": config.reward_name,
        **options,
    }
    return arguments if "evaluator" in options else {**arguments, "evaluator": problem.evaluator()}


ENVIRONMENTS = {"ChannelPruning": channel_pruning, "MixedPrecision": mixed_precision, "LowRank": joint, "Joint": joint}


def find_environment(name: str) -> str:
    """The name of an environment.

    Raises:
        InputError: there is none of that name.
    """
    if name not in ENVIRONMENTS:
        raise InputError(f"there is no environment {name!r}{did_you_mean(name, ENVIRONMENTS)}")
    return name


def check_elsewhere(problem: Problem, name: str, options: Mapping[str, Any]) -> None:
    """InputError where policies of that environment are not what the evaluators of the problem's config judge."""
    if name != "MixedPrecision" or "evaluator" in options:
        return
    space = problem.config.space
    if options.get("faithful", problem.config.search.faithful):
        raise InputError("a faithful MixedPrecision is judged by training images: take make_env, one at a time")
    if not (space.weight_bits or space.activation_bits):
        raise InputError("evaluators elsewhere prepare for the config's space: give it weight_bits for MixedPrecision")


def bit_price(problem: Problem) -> BitPrice:
    """What bits cost in the metric of the problem's budget."""
    graph, backend, metric = problem.graph, problem.backend, problem.constraint.metric
    if metric in COUNTED:
        return counted_price(graph, metric)
    if metric in MODELLED and isinstance(backend, AcceleratorBackend):
        return accelerator_price(backend.prices(graph), metric)
    return network_price(graph, lambda network: backend.estimate(network).as_metrics()[metric])


def _bits(problem: Problem) -> dict[str, Any]:
    """What the config's space says of bits; nothing where it decides on none, and the environment's defaults hold.

    Raises:
        InputError: it ties decisions that the environment takes one by one.
    """
    space = problem.config.space
    if not (space.weight_bits or space.activation_bits):
        return {}
    if space.tie or space.coupled_bits:
        raise InputError("the environment MixedPrecision decides on each layer alone: leave out tie, coupled_bits")
    kinds = ("weight_bits", "activation_bits")
    layers = {name for each in problem.space.decisions if each.dimension in kinds for name in each.targets}
    return {**{kind: getattr(space, kind) for kind in kinds}, "ends": space.ends, "layers": layers}


def _evaluator(problem: Problem, training_images: bool) -> PolicyEvaluator:
    """Of policies with bits, whose activations need images; as many training images as there are held-out ones."""
    options = compression_options(problem.config)
    images, labels = calibration_data(problem.data, options.calibration_images, options.seed)
    compressor = Compressor(problem.network, images, options, labels, problem.elastic)
    if not training_images:
        return problem.evaluator(compressor)
    held_out, total = len(problem.data.val), len(problem.data.train)  # type: ignore[arg-type]  # as torch declares them
    seen = Subset(problem.data.train, draw(total, held_out, options.seed).tolist())
    device = problem.config.search.device
    return PolicyEvaluator(compressor, seen, problem.constraints, problem.backend, problem.metric, device)
