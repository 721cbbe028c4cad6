"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017) from their IDX files, compressed or not.

An IDX file is two zero bytes, the type of its entries (8: unsigned bytes), the number of dimensions, each dimension as
a big-endian 32-bit integer, then the entries.
"""

from math import prod
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from automl.data.augment import ShiftAndFlip
from automl.data.bundle import Augment, DataBundle, hold_out, tensor_bundle
from automl.data.files import check_labels, read_bytes, require_files
from search_spaces.errors import InputError

CLASSES = 10
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
UNSIGNED_BYTES = 8
Split = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


def mnist(*, root: Path, val: Annotated[int, Field(ge=1)] = 5000, seed: int = 0) -> DataBundle:
    """MNIST's handwritten digits, 1 x 28 x 28, from the IDX files (or IDX.gz) in `root`.

    Args:
        root: the folder that holds the four files.
        val: images held out of the training data, stratified by class.
        seed: of the split.
    """
    source = "the MNIST page of Yann LeCun, Corinna Cortes and Christopher Burges, or one of its mirrors"
    return _load("mnist", root, val, seed, source, ShiftAndFlip(pad=2), mean=0.1307, std=0.3081)


def fashion_mnist(*, root: Path, val: Annotated[int, Field(ge=1)] = 5000, seed: int = 0) -> DataBundle:
    """Fashion-MNIST's articles of clothing, 1 x 28 x 28, from the IDX files (or IDX.gz) in `root`.

    Args:
        root: the folder that holds the four files; MNIST's have the same names.
        val: images held out of the training data, stratified by class.
        seed: of the split.
    """
    source = "Zalando Research's Fashion-MNIST repository"
    return _load("fashion_mnist", root, val, seed, source, ShiftAndFlip(pad=2, flip=True), mean=0.2860, std=0.3530)


def _load(
    name: str, root: Path, val: int, seed: int, source: str, augment: Augment, mean: float, std: float
) -> DataBundle:
    remedy = f"get them from {source} and put them there, unpacked or as .gz"
    train_images, train_labels, test_images, test_labels = require_files(name, root, FILES, remedy)
    images, labels = _read_split(train_images, train_labels)
    test = _read_split(test_images, test_labels)
    if test[0].shape[1:] != images.shape[1:]:
        raise InputError(f"{test_images} holds pictures of another size than {train_images}; fetch them again")
    kept, held = hold_out(labels, val, seed, f"the search-validation slice of {name!r}")
    splits = [(images[kept], labels[kept]), (images[held], labels[held]), test]
    return tensor_bundle(name, splits, classes=CLASSES, augment=augment, mean=[mean], std=[std])


def _read_split(images_path: Path, labels_path: Path) -> Split:
    """Images [N, 1, H, W] and labels [N]."""
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1).astype(np.int64)
    if len(images) != len(labels):
        raise InputError(f"{images_path} holds {len(images)} images, {labels_path} {len(labels)} labels; fetch both")
    check_labels(labels_path, labels, CLASSES)
    return images[:, None], labels


def read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """The array of unsigned bytes of an IDX file.

    Raises:
        InputError: it is no such file, has another number of dimensions, or is empty or cut short.
    """
    content = read_bytes(path)
    if content[:4] != bytes([0, 0, UNSIGNED_BYTES, dimensions]):
        raise InputError(f"{path} is no IDX file of bytes in {dimensions} dimensions; fetch it again")
    start = 4 + 4 * dimensions
    shape = tuple(np.frombuffer(content[4:start], ">u4").tolist()) if len(content) >= start else ()
    if not shape or len(content) != start + prod(shape) or not prod(shape):
        raise InputError(f"{path} is damaged: {len(content)} bytes do not hold what its header says; fetch it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
