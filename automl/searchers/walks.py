"""Which walk an agent takes through a space of more than channels: HAQ's over bits, the joint one over the rest."""

from collections.abc import Sequence

import numpy as np

from backends.bit_prices import BitPrice, counted_price
from envs.joint import JointWalk
from envs.layerwise import LayerwiseWalk
from envs.mixed_precision import MixedPrecisionWalk
from search_spaces.errors import InputError
from search_spaces.layers import FLOAT32_BITS
from search_spaces.objective import COUNTED, Constraint
from search_spaces.space import Prices, SearchSpace

KINDS = ("weight_bits", "activation_bits")


def walk_over(
    space: SearchSpace, constraints: Sequence[Constraint], prices: Prices, *, faithful: bool, step_code: bool
) -> LayerwiseWalk:
    """The walk over a space that has more than channels: HAQ's where bits alone are decided layer by layer.

    Args:
        space: what is decided.
        constraints: budgets, all of which are kept.
        prices: of points.
        faithful: as published; for bits under a budget that is counted.
        step_code: whether the state tells the number of the step.

    Raises:
        InputError: nothing was published for this space or budget, or the budgets cannot be kept.
    """
    if (reason := space.unreachable(constraints, prices)) is not None:
        raise InputError(reason)
    walk = bits_walk(space, constraints, prices, faithful=faithful, step_code=step_code)
    if walk is not None:
        return walk
    if faithful:
        raise InputError(
            "search.faithful is AMC's agent of channels, or HAQ's of weight_bits and activation_bits that are decided "
            "for each layer alone under one budget in macs, params or weight_bytes; set it to false for this space"
        )
    return JointWalk(space, constraints, prices, step_code=step_code)


def bits_walk(
    space: SearchSpace, constraints: Sequence[Constraint], prices: Prices, *, faithful: bool, step_code: bool
) -> MixedPrecisionWalk | None:
    """HAQ's walk; None where it does not lead through this space, or the budget is not one that it can sweep.

    Its sweeps price many networks, which is too much to ask of a latency that is measured.
    """
    (constraint, *others) = constraints
    decisions = space.decisions
    choices = {kind: {each.choices for each in decisions if each.dimension == kind} for kind in KINDS}
    alone = all(each.dimension in KINDS and len(each.targets) == 1 for each in decisions)
    metric = constraint.metric
    if others or not alone or any(len(found) > 1 for found in choices.values()):
        return None
    if metric == "latency_s" or (faithful and metric not in COUNTED):
        return None
    weight_bits, activation_bits = (next(iter(choices[kind]), ()) for kind in KINDS)
    layers = {name for each in decisions for name in each.targets}
    ends = {space.graph.full_layers[index].name for index in (0, -1)}
    walk = MixedPrecisionWalk(
        space.graph,
        counted_price(space.graph, metric) if faithful else bit_price(space, prices, metric),
        constraint.limit,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        ends=bool(layers & ends),
        layers=layers,
        step_code=step_code,
        faithful=faithful,
    )
    return walk if faithful or space.contains(walk.policy()) else None


def bit_price(space: SearchSpace, prices: Prices, metric: str) -> BitPrice:
    """What bits [policies, layers, 2] cost in a metric, by the prices of a space of bits that are decided apart."""
    position = {layer.name: index for index, layer in enumerate(space.graph.full_layers)}
    layers = [position[each.targets[0]] for each in space.decisions]
    kinds = [KINDS.index(each.dimension) for each in space.decisions]
    numbers = np.zeros((len(space.decisions), FLOAT32_BITS + 1), dtype=np.int64)
    for decision, row in zip(space.decisions, numbers, strict=True):
        row[[FLOAT32_BITS if bits is None else bits for bits in decision.choices]] = range(len(decision.choices))
    rows = np.arange(len(numbers))
    return lambda bits: prices(numbers[rows, bits[:, layers, kinds]])[metric]
