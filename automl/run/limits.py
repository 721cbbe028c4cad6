"""The limits of a run's budgets, in the metrics' own units, for those who look on: a share of a network's cost is known
only to whoever has captured the network."""

import json
from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path

from automl.errors import InputError
from automl.run.directory import write_json
from search_spaces.objective import Constraint

FILE = "limits.json"


def write_limits(run: Path, constraints: Iterable[Constraint]) -> None:
    """Note the limits in the run directory; one that is not known yet is left out."""
    write_json(run / FILE, {each.metric: each.limit for each in constraints if isfinite(each.limit)})


def read_limits(run: Path) -> Mapping[str, float]:
    """Limit by metric, the first budget first; empty before the search.

    Raises:
        InputError: the file is damaged.
    """
    path = run / FILE
    try:
        return {str(metric): float(limit) for metric, limit in json.loads(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is damaged: {error}; remove it") from None
