"""Sub-networks whose accuracy is known, as a file: what predictors learn from, and what they are judged by."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from automl.run.directory import write_atomically
from search_spaces.errors import InputError
from search_spaces.policy import CompressionPolicy
from search_spaces.versions import require_version

FILE = "samples.json"
VERSION = 1
TRAIN, HELD_OUT = "train", "held_out"


@dataclass(frozen=True)
class Sample:
    """A sub-network that was evaluated.

    Attributes:
        policy: that it was cut out by.
        accuracy: on the search-validation slice; larger is better.
        held_out: whether predictors are judged by it, and do not learn from it.
    """

    policy: CompressionPolicy
    accuracy: float
    held_out: bool = False


def write_samples(path: Path, model: str, samples: Sequence[Sample]) -> None:
    """Replace the file, atomically.

    Args:
        path: of the file.
        model: digest of the network that the policies are for.
        samples: in any order, which is kept.
    """
    entries = [
        {
            "policy": json.loads(each.policy.to_json()),
            "accuracy": each.accuracy,
            "split": HELD_OUT if each.held_out else TRAIN,
        }
        for each in samples
    ]
    document = {"version": VERSION, "model": model, "samples": entries}
    write_atomically(path, (json.dumps(document, allow_nan=False) + "\n").encode())


def read_samples(path: Path, model: str) -> list[Sample]:
    """What `write_samples` wrote.

    Args:
        path: of the file.
        model: digest of the network that they are to be for.

    Raises:
        InputError: the file is missing or damaged, or is of another network or version.
    """
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"samples {path} are not there; `trimtab supernet` makes them") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"samples {path} are damaged: {error}; remove the file, and they are made anew") from None
    if not isinstance(document, dict):
        raise InputError(f"samples {path} are damaged: they are no object; remove the file, and they are made anew")
    remedy = "remove the file, and they are made anew"
    require_version(f"the file of samples {path}", document.get("version"), [VERSION], remedy)
    if document.get("model") != model:
        raise InputError(
            f"samples {path} are of another network (digest {str(document.get('model'))[:12]}, the config's has "
            f"{model[:12]}); give the config the model and data that they were made with"
        )
    try:
        return [_sample(entry) for entry in document["samples"]]
    except (KeyError, TypeError, ValueError, OverflowError, InputError) as error:
        said = f"{type(error).__name__}: {error}"
        raise InputError(f"samples {path} are damaged: {said}; remove the file, and they are made anew") from None


def _sample(entry: object) -> Sample:
    if not isinstance(entry, dict):
        raise TypeError(f"a sample is an object, got {entry!r:.60}")
    accuracy, split = entry["accuracy"], entry["split"]
    if isinstance(accuracy, bool) or not isinstance(accuracy, int | float) or not isfinite(accuracy):
        raise ValueError(f"an accuracy is a number, got {accuracy!r:.60}")
    if split not in (TRAIN, HELD_OUT):
        raise ValueError(f"a split is {TRAIN!r} or {HELD_OUT!r}, got {split!r:.60}")
    policy = CompressionPolicy.from_json(json.dumps(entry["policy"]))
    return Sample(policy, float(accuracy), split == HELD_OUT)
