"""Arrays that take long to make, or a library that takes long to load: made once, then read from the cache."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from automl.cache import atomic_path, cache_dir, digest_of

Arrays = Mapping[str, npt.NDArray[Any]]


def cached_arrays(kind: str, recipe: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
    """What `make` gives, from the cache where an earlier process put it there.

    Args:
        kind: what the file's name begins with.
        recipe: all that the arrays depend on, versions of libraries included.
        make: at least one array, by name.
    """
    file = cache_dir("data") / f"{kind}-{digest_of(recipe)[:16]}.safetensors"
    found = _read(file)
    if found is None:
        found = {name: np.ascontiguousarray(array) for name, array in make().items()}
        with atomic_path(file) as temporary:
            save_file(dict(found), temporary, {"digest": _content_digest(found)})
    return found


def _content_digest(arrays: Arrays) -> str:
    hasher = hashlib.sha256()
    for name in sorted(arrays):
        hasher.update(arrays[name].tobytes())
    return hasher.hexdigest()


def _read(file: Path) -> Arrays | None:
    """What the cache holds; None where there is nothing, or it is damaged."""
    try:
        with safe_open(file, framework="numpy") as stored:
            found = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping
            digest = (stored.metadata() or {}).get("digest")
    except (OSError, SafetensorError):
        return None
    return found if digest == _content_digest(found) else None
