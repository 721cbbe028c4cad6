"""Networks measured end to end for a search's sake, remembered: a later run like it gets the same figures.

What a search holds back of a latency budget follows from a few networks by the clock, so equal runs stay equal only
where they are told the same latencies, as they are by the table of operators. What was measured first stands.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from automl.cache import cache_dir
from automl.run.directory import write_json
from search_spaces.policy import CompressionPolicy

Timed = Callable[[Mapping[str, CompressionPolicy]], Mapping[str, float]]
"""Compiles the networks of policies and measures them side by side: seconds by name."""


def remembered(timed: Timed, model: str, device: str) -> Timed:
    """The same, measuring only what has not been measured on this device.

    Args:
        timed: measures.
        model: digest of the uncompressed network.
        device: key of the latency table that goes with it.
    """

    def look_up(policies: Mapping[str, CompressionPolicy]) -> Mapping[str, float]:
        key = json.dumps([device, model, {name: policy.digest for name, policy in policies.items()}], sort_keys=True)
        path = cache_dir("latency", "networks") / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
        known = _read(path, policies)
        if known is None:
            known = dict(timed(policies))
            write_json(path, known)
        return known

    return look_up


def _read(path: Path, policies: Mapping[str, CompressionPolicy]) -> dict[str, float] | None:
    """Seconds by name; None where the file is not there, or damaged and to be written anew."""
    try:
        found = {str(name): float(seconds) for name, seconds in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    sound = found.keys() == policies.keys() and all(0 < seconds < math.inf for seconds in found.values())
    return found if sound else None
