"""A stand-in for measurements not yet made: latency predicted from an operator's work and traffic."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt

from backends.latency_table import Entry
from backends.recipes import Recipe
from search_spaces.errors import TrimtabError

FloatArray = npt.NDArray[np.float64]

_FEW = 6
"""Entries below which a kind is predicted from all kinds together."""

_FOLDS = 5


@dataclass(frozen=True, slots=True)
class LatencyRegression:
    """latency = a + b work + c traffic with a, b, c >= 0, for each kind of operator: the cost of a call, seconds per
    multiply-add and seconds per byte. Kinds with few entries are predicted from all kinds together.

    Attributes:
        error: mean |predicted / measured - 1| over entries that the fit had not seen; infinite where a single entry
            leaves nothing to test on. Whoever uses a prediction prints it.
        errors: the same by kind.
        entries: how many measurements the fit rests on.
    """

    error: float
    errors: Mapping[str, float]
    entries: int
    _coefficients: Mapping[str, FloatArray] = field(repr=False)
    _overall: FloatArray = field(repr=False)

    @classmethod
    def fit(cls, entries: Mapping[str, Entry]) -> Self:
        """Fits to a table's entries (by recipe); five-fold cross-validation with folds drawn by the recipe's digest.

        Raises:
            TrimtabError: nothing has been measured.
        """
        if not entries:
            raise TrimtabError("no operator has been measured on this device, so none can be predicted; measure some")
        ordered = sorted(entries, key=lambda text: hashlib.sha256(text.encode()).digest())
        known = [entries[text] for text in ordered]
        misses: dict[str, list[float]] = {}
        for fold in range(min(_FOLDS, len(known)) if len(known) > 1 else 0):
            seen = [entry for index, entry in enumerate(known) if index % _FOLDS != fold]
            coefficients, overall = _fit_kinds(seen)
            for entry in known[fold::_FOLDS]:
                predicted = _predict(coefficients.get(entry.kind, overall), entry.work, entry.traffic)
                misses.setdefault(entry.kind, []).append(abs(predicted / entry.latency_s - 1))
        errors = {kind: float(np.mean(values)) for kind, values in sorted(misses.items())}
        error = float(np.mean([value for values in misses.values() for value in values])) if misses else float("inf")
        return cls(error, errors, len(known), *_fit_kinds(known))

    def predict(self, recipe: Recipe) -> float:
        """Seconds that the operator takes, as far as one can tell unmeasured."""
        return _predict(self._coefficients.get(recipe.kind, self._overall), recipe.work, recipe.traffic)


def _fit_kinds(entries: list[Entry]) -> tuple[dict[str, FloatArray], FloatArray]:
    """Coefficients of each kind with entries enough, and of all entries together."""
    kinds: dict[str, list[Entry]] = {}
    for entry in entries:
        kinds.setdefault(entry.kind, []).append(entry)
    return {kind: _fit(found) for kind, found in kinds.items() if len(found) >= _FEW}, _fit(entries)


def _fit(entries: list[Entry]) -> FloatArray:
    """[3] non-negative coefficients of (1, work, traffic) with the least sum of squared relative errors."""
    from scipy.optimize import nnls  # a third of a second, in every process that knows of prices

    latency = np.array([entry.latency_s for entry in entries])
    features = np.array([(1.0, entry.work, entry.traffic) for entry in entries]) / latency[:, None]
    scale = features.max(axis=0)
    scale[scale == 0] = 1.0
    solution, _ = nnls(features / scale, np.ones(len(entries)))
    return np.asarray(solution / scale, dtype=np.float64)


def _predict(coefficients: FloatArray, work: float, traffic: float) -> float:
    return float(coefficients @ np.array((1.0, work, traffic)))
