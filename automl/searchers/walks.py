"""Which walk an agent takes through a space of more than channels: the joint one, or as published HAQ's over bits."""

from collections.abc import Sequence

from backends.bit_prices import counted_price
from envs.joint import JointWalk
from envs.layerwise import LayerwiseWalk
from envs.mixed_precision import MixedPrecisionWalk
from search_spaces.errors import InputError
from search_spaces.objective import COUNTED, Constraint
from search_spaces.space import Prices, SearchSpace

KINDS = ("weight_bits", "activation_bits")


def walk_over(
    space: SearchSpace,
    constraints: Sequence[Constraint],
    prices: Prices,
    *,
    faithful: bool,
    step_code: bool,
    spend: bool = True,
) -> LayerwiseWalk:
    """The walk over a space that has more than channels.

    Where bits alone are decided layer by layer, HAQ's walk would do, too. With 2 to 8 bits a layer at 8 % of
    ResNet-20's bytes, DDPG found 52 % (48, 52, 54) by it in 100 episodes and 60 % (58, 60, 61) by the joint walk.

    Args:
        space: what is decided.
        constraints: budgets, all of which are kept.
        prices: of points.
        faithful: as published: bits under one budget that is counted.
        step_code: whether the state tells the number of the step.
        spend: whether a joint walk spends all of the budgets.

    Raises:
        InputError: nothing was published for this space or budget, or the budgets cannot be kept.
    """
    if (reason := space.unreachable(constraints, prices)) is not None:
        raise InputError(reason)
    if not faithful:
        return JointWalk(space, constraints, prices, step_code=step_code, spend=spend)
    walk = haq_walk(space, constraints, step_code=step_code)
    if walk is None:
        raise InputError(
            "search.faithful is AMC's agent of channels, or HAQ's of weight_bits and activation_bits that are decided "
            "for each layer alone under one budget in macs, params or weight_bytes; set it to false for this space"
        )
    return walk


def haq_walk(space: SearchSpace, constraints: Sequence[Constraint], *, step_code: bool) -> MixedPrecisionWalk | None:
    """HAQ's walk as published; None where it does not lead through this space, or the budget is not a counted one."""
    (constraint, *others) = constraints
    decisions = space.decisions
    choices = {kind: {each.choices for each in decisions if each.dimension == kind} for kind in KINDS}
    alone = all(each.dimension in KINDS and len(each.targets) == 1 for each in decisions)
    if others or not alone or constraint.metric not in COUNTED or any(len(found) > 1 for found in choices.values()):
        return None
    weight_bits, activation_bits = (next(iter(choices[kind]), ()) for kind in KINDS)
    layers = {name for each in decisions for name in each.targets}
    ends = {space.graph.full_layers[index].name for index in (0, -1)}
    return MixedPrecisionWalk(
        space.graph,
        counted_price(space.graph, constraint.metric),
        constraint.limit,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        ends=bool(layers & ends),
        layers=layers,
        step_code=step_code,
        faithful=True,
    )
