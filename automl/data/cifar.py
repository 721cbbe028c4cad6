"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from the files of their binary version.

A file is a row of records: one label byte (CIFAR-10), or a coarse and a fine one (CIFAR-100), then 32 x 32 red, green
and blue bytes. The python version is never read: its files are pickles, which run code when they are loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from automl.data.augment import ShiftAndFlip
from automl.data.bundle import DataBundle, hold_out, tensor_bundle
from automl.data.files import check_labels, read_bytes, require_files
from search_spaces.errors import InputError

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Version:
    """Where the files stand, what a record starts with, and the training images' mean and deviation per channel."""

    name: str
    folder: str
    pickles: str
    train: Sequence[str]
    test: str
    classes: int
    label_bytes: int  # the last of them is the label
    mean: Sequence[float]
    std: Sequence[float]


_CIFAR10 = _Version(
    name="cifar10",
    folder="cifar-10-batches-bin",
    pickles="cifar-10-batches-py",
    train=[f"data_batch_{number}.bin" for number in range(1, 6)],
    test="test_batch.bin",
    classes=10,
    label_bytes=1,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)
_CIFAR100 = _Version(
    name="cifar100",
    folder="cifar-100-binary",
    pickles="cifar-100-python",
    train=["train.bin"],
    test="test.bin",
    classes=100,
    label_bytes=2,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)


def cifar10(*, root: Path, val: Annotated[int, Field(ge=1)] = 5000, seed: int = 0) -> DataBundle:
    """CIFAR-10, 3 x 32 x 32, from the files of its binary version in `root`.

    Args:
        root: the folder that holds `cifar-10-batches-bin`, or that folder.
        val: images held out of the training data, the same number of each class.
        seed: of the split.
    """
    return _load(_CIFAR10, root, val, seed)


def cifar100(*, root: Path, val: Annotated[int, Field(ge=1)] = 5000, seed: int = 0) -> DataBundle:
    """CIFAR-100 with its 100 fine labels, 3 x 32 x 32, from the files of its binary version in `root`.

    Args:
        root: the folder that holds `cifar-100-binary`, or that folder.
        val: images held out of the training data, the same number of each class.
        seed: of the split.
    """
    return _load(_CIFAR100, root, val, seed)


def _load(version: _Version, root: Path, val: int, seed: int) -> DataBundle:
    folder = root if (root / version.test).is_file() else root / version.folder
    archive = version.folder.replace("-batches-bin", "-binary") + ".tar.gz"
    if (root / archive).is_file():
        remedy = f"unpack {archive} in {root}"
    else:
        source = "Alex Krizhevsky's CIFAR page at the University of Toronto"
        remedy = f"get the binary version ({archive}) from {source} and unpack it in {root}"
    if not folder.is_dir() and ((root / version.pickles).is_dir() or root.name == version.pickles):
        raise InputError(
            f"data set {version.name!r}: {root} has the python version ({version.pickles}), pickles that are never "
            f"read; {remedy}"
        )
    *train, test = require_files(version.name, folder, [*version.train, version.test], remedy)
    parts = [_read(version, path) for path in train]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    kept, held = hold_out(labels, val, seed, f"the search-validation slice of {version.name!r}")
    return tensor_bundle(
        version.name,
        [(images[kept], labels[kept]), (images[held], labels[held]), _read(version, test)],
        classes=version.classes,
        augment=ShiftAndFlip(pad=4, flip=True),
        mean=version.mean,
        std=version.std,
    )


def _read(version: _Version, path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Images [N, 3, 32, 32] and labels [N] of one file."""
    content = read_bytes(path)
    size = version.label_bytes + PIXELS
    if not content or len(content) % size:
        raise InputError(f"{path} is damaged: {len(content)} bytes are no whole number of {size}; fetch it again")
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    labels = records[:, version.label_bytes - 1].astype(np.int64)
    check_labels(path, labels, version.classes)
    return records[:, version.label_bytes :].reshape(-1, *SHAPE), labels
