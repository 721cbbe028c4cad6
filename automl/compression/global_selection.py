"""One ratio for the whole network: the units of all channel groups are ranked together, and the least important go.

A search decides for each group how much it keeps; this is what the literature did before, and what a search has to
beat.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from automl.compression.importance.base import FloatArray, ImportanceInputs
from automl.compression.selection import IntArray, check_scores, refuse_unranked, score_across
from search_spaces.channel_space import ChannelSpace
from search_spaces.errors import InputError, did_you_mean
from search_spaces.policy import CompressionPolicy

COUNTED = ("macs", "params", "weight_bytes", "units")
"""What a ratio may be one of."""


def global_policy(
    space: ChannelSpace, inputs: ImportanceInputs, importance: str, ratio: float, of: str = "macs"
) -> CompressionPolicy:
    """The policy that removes the least important units of the whole network until it costs `ratio` of it.

    Args:
        space: what each group may keep; the graph is that of the network scored.
        inputs: what the criterion may look at.
        importance: name of the criterion; see `automl.compression.selection`.
        ratio: of the uncompressed network's cost that may stay, in (0, 1].
        of: which cost; see `COUNTED`.

    Raises:
        InputError: see `score_units` and `keep_most_important`.
    """
    kept = keep_most_important(space, score_across(inputs, importance), ratio, of)
    return space.graph.policy(kept)


def keep_most_important(
    space: ChannelSpace, scores: Mapping[str, FloatArray], ratio: float, of: str = "macs"
) -> tuple[int, ...]:
    """How many units each group keeps when the least important ones of all groups go first.

    A group goes down one step of the space's grid when as many of its units are due, and never below its least number.
    The result is the largest on that way that costs no more than asked: one step back is too expensive. Of equally
    important units those of later groups go first, and in a group those of higher index.

    Args:
        space: what each group may keep.
        scores: group name -> importance of each unit [width], on one scale for all groups.
        ratio: of the uncompressed network's cost that may stay, in (0, 1].
        of: which cost; see `COUNTED`.

    Raises:
        InputError: a value out of range, scores that do not fit the groups, or a ratio that the space cannot reach.
    """
    if of not in COUNTED:
        raise InputError(f"a global ratio is one of {', '.join(COUNTED)}, got {of!r}{did_you_mean(of, COUNTED)}")
    if not 0.0 < ratio <= 1.0:
        raise InputError(f"the global ratio lies in (0, 1], got {ratio}")
    owners = _owners_by_importance(space, scores)
    whole = _cost(space, [group.width for group in space.graph.groups], of)

    def ratio_without(removed: int) -> float:
        return _cost(space, _kept(space, owners, removed), of) / whole

    least = ratio_without(len(owners))
    if least > ratio:
        raise InputError(
            f"no policy of the search space keeps {ratio:g} of the {of}, the cheapest keeps {least:.4f}; raise the "
            "ratio or lower the space's lower bound"
        )
    low, high = 0, len(owners)  # the cost falls as more are removed: bisect
    while low < high:
        middle = (low + high) // 2
        if ratio_without(middle) <= ratio:
            high = middle
        else:
            low = middle + 1
    return _kept(space, owners, low)


def _owners_by_importance(space: ChannelSpace, scores: Mapping[str, FloatArray]) -> IntArray:
    """The groups, by index, that the units of all groups belong to, the least important unit first."""
    checked, rows = check_scores(scores, space.graph), []
    for group, least in zip(space.graph.groups, space.least, strict=True):
        if group.name not in checked and least < group.width:
            refuse_unranked(group.name)
        rows.append(checked.get(group.name, np.zeros(group.width)))  # of a group that stays whole, they say nothing
    owners = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return owners[::-1][np.argsort(np.concatenate(rows)[::-1], kind="stable")]


def _kept(space: ChannelSpace, owners: IntArray, removed: int) -> tuple[int, ...]:
    """Units that each group keeps where the first `removed` are due: the next larger number that the space allows."""
    due = np.bincount(owners[:removed], minlength=len(space.graph.groups))
    kept = []
    for index, group in enumerate(space.graph.groups):
        choices = space.choices(index)
        kept.append(choices[int(np.searchsorted(choices, group.width - due[index]))])
    return tuple(kept)


def _cost(space: ChannelSpace, kept: Sequence[int], of: str) -> int:
    return sum(kept) if of == "units" else int(getattr(space.graph.with_kept(kept), of))
