"""Reading the files of a data set that a person fetched, and saying plainly what is missing or damaged."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from automl.plugins import one_line
from search_spaces.errors import InputError


def require_files(name: str, folder: Path, files: Sequence[str], remedy: str) -> list[Path]:
    """Paths of `files` in `folder`; each may stand there with `.gz` appended where that is how it is published.

    Raises:
        InputError: naming the files that are missing, where, and what to do about it.
    """
    found, missing = [], []
    for file in files:
        present = next((path for path in (folder / file, folder / f"{file}.gz") if path.is_file()), None)
        if present is None:
            missing.append(file)
        else:
            found.append(present)
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise InputError(f"data set {name!r}: {', '.join(missing)} {verb} not in {folder}; {remedy}")
    return found


def read_bytes(path: Path) -> bytes:
    """A file's content, decompressed where its name ends in `.gz`.

    Raises:
        InputError: it cannot be read, or is a damaged archive.
    """
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as archive:
            return archive.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({one_line(error)}); fetch it again") from error


def check_labels(path: Path, labels: npt.NDArray[np.int64], classes: int) -> None:
    """InputError where a label is not one of 0 to `classes` - 1: the file is damaged, or of another data set."""
    if labels.size and int(labels.max()) >= classes:
        raise InputError(f"{path} holds the label {labels.max()}, the data set has {classes} classes; fetch it again")
