"""Which units of a channel group stay: the most important ones, by a criterion registered under a name.

Another criterion is another file in `automl.compression.importance` and another entry of `IMPORTANCES`, or a user's own
as "package.module:attribute".
"""

from collections.abc import Mapping
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from automl.compression.importance.base import Criterion, FloatArray, ImportanceInputs, as_they_are, by_norm
from automl.compression.importance.batch_norm_scale import batch_norm_scale
from automl.compression.importance.geometric_median import geometric_median
from automl.compression.importance.l1 import l1, magnitude
from automl.compression.importance.l2 import l2
from automl.compression.importance.random import random
from automl.compression.importance.taylor import taylor
from automl.plugins import is_reference, resolve
from search_spaces.errors import InputError, did_you_mean
from search_spaces.graph import ModelGraph

IntArray = npt.NDArray[np.int64]

IMPORTANCES: dict[str, Criterion] = {
    "magnitude": Criterion(magnitude),
    "l1": Criterion(l1),
    "l2": Criterion(l2),
    "batch_norm_scale": Criterion(batch_norm_scale, as_they_are, unranked="no batch norm with a scale is behind them"),
    "taylor": Criterion(taylor, by_norm, labelled=True),
    "geometric_median": Criterion(geometric_median),
    "random": Criterion(random, as_they_are),
}


def criterion(importance: str) -> Criterion:
    """The criterion of that name; a user's own may be a `Criterion` or the function that scores.

    Raises:
        InputError: there is none.
    """
    if importance in IMPORTANCES:
        return IMPORTANCES[importance]
    if not is_reference(importance):
        raise InputError(f"unknown importance {importance!r}{did_you_mean(importance, IMPORTANCES)}")
    found = resolve(importance)
    if not (isinstance(found, Criterion) or callable(found)):
        raise InputError(
            f"an importance is a Criterion or a function of ImportanceInputs, {importance!r} is {found!r:.80}"
        )
    return found if isinstance(found, Criterion) else Criterion(found)


def score_units(inputs: ImportanceInputs, importance: str) -> dict[str, FloatArray]:
    """Importance of the units of every group [width], within the group; of those that the criterion can rank.

    Raises:
        InputError: there is no such criterion, it lacks what it needs, or a user's own does not give one finite number
            for each unit.
    """
    return check_scores(criterion(importance).score(inputs), inputs.network.graph, importance)


def score_across(inputs: ImportanceInputs, importance: str) -> dict[str, FloatArray]:
    """The same on one scale for all groups, as the criterion's paper compares them.

    Raises:
        InputError: see `score_units`.
    """
    across = criterion(importance).across
    return {name: across(score) for name, score in score_units(inputs, importance).items()}


def rank_units(inputs: ImportanceInputs, importance: str) -> dict[str, IntArray]:
    """The units of every group that can be ranked, the most important first; of equal ones the lower index.

    Raises:
        InputError: see `score_units`.
    """
    scores = score_units(inputs, importance)
    return {name: np.argsort(-score, kind="stable") for name, score in scores.items()}


def refuse_unranked(group: str, importance: str | None = None) -> NoReturn:
    """InputError: the units of a group are to be pruned, and have no scores by a criterion."""
    by, reason = ("", "") if importance is None else (f" by {importance!r}", f": {criterion(importance).unranked}")
    raise InputError(
        f"the units of channel group {group!r} cannot be ranked{by}{reason}; choose another importance, or leave the "
        "group whole (space.protect)"
    )


def importance_names() -> list[tuple[str, str]]:
    """(name, one-line description) of every criterion that Trimtab knows by name."""
    return [(name, (known.score.__doc__ or "").strip().splitlines()[0]) for name, known in IMPORTANCES.items()]


def check_scores(
    scores: Mapping[str, FloatArray], graph: ModelGraph, importance: str | None = None
) -> dict[str, FloatArray]:
    """The scores of the groups of the network that have any, in its order.

    Raises:
        InputError: they are not one finite number for each unit.
    """
    found = {}
    for group in graph.groups:
        if group.name not in scores:
            continue
        score = np.asarray(scores[group.name], dtype=np.float64)
        if score.shape != (group.width,) or not np.isfinite(score).all():
            got = f"an array of shape {list(score.shape)}" if score.shape != (group.width,) else "NaN or infinity"
            raise InputError(
                f"an importance is one finite number for each of the {group.width} units of group {group.name!r}, "
                f"{'there is' if importance is None else f'{importance!r} gives'} {got}"
            )
        found[group.name] = score
    return found
