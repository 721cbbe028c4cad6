"""How accurate a policy's network should be, learned from those that were evaluated."""

from importlib import import_module

from automl.predictors.base import Predictor
from search_spaces.errors import InputError, did_you_mean
from search_spaces.space import SearchSpace

__all__ = ["PREDICTORS", "Predictor", "make_predictor"]

PREDICTORS = {"mlp": "Mlp", "boosted": "Boosted"}
"""Classes of the predictors, each in the module of its name."""


def make_predictor(kind: str, space: SearchSpace) -> Predictor:
    """A predictor that has learned nothing yet; its library is imported when it is asked for.

    Args:
        kind: one of `PREDICTORS`.
        space: whose points it predicts.

    Raises:
        InputError: there is no predictor of that name.
    """
    if kind not in PREDICTORS:
        raise InputError(f"there is no accuracy predictor {kind!r}{did_you_mean(kind, PREDICTORS)}")
    made: Predictor = getattr(import_module(f"automl.predictors.{kind}"), PREDICTORS[kind])(space)
    return made
