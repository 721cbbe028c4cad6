"""What a data set is: three disjoint splits of normalised images, and how a training batch is augmented."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from automl.data.cached import Arrays, cached_arrays
from search_spaces.errors import InputError

Images = Dataset[Any]
"""Yields (image float32 [C, H, W], normalised; label int)."""

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""(images [N, C, H, W], generator) -> images of the bundle's shape, randomly changed."""


@runtime_checkable
class AugmentsItems(Protocol):
    """A lazily decoded data set that augments while it decodes, because the crop needs the whole picture."""

    def augmented(self, index: int, generator: torch.Generator) -> tuple[Tensor, int]:
        """Item `index`, randomly changed; everything random comes from `generator`."""


@dataclass(frozen=True)
class DataBundle:
    """A data set.

    Attributes:
        name: as in the config.
        train: what networks are trained on. Where it `AugmentsItems`, training sees its augmented items.
        val: the search-validation slice, held out of the training data; search accuracy comes from it.
        test: read once, at the end.
        input_shape: (channels, height, width).
        classes: number of classes.
        digest: SHA-256 (hex) of what the data are; equal digests mean equal data.
        augment: changes training batches, None where nothing is to be changed.
    """

    name: str
    train: Images
    val: Images
    test: Images
    input_shape: tuple[int, int, int]
    classes: int
    digest: str
    augment: Augment | None = None


def tensor_bundle(
    name: str,
    splits: Sequence[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]],
    *,
    classes: int,
    augment: Augment | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> DataBundle:
    """A bundle held in memory, normalised per channel.

    Args:
        name: as in the config.
        splits: train, val and test as (images [N, C, H, W] of 0..255, labels [N]).
        classes: number of classes.
        augment: see `DataBundle`.
        mean, std: per channel, on a scale of 0 to 1; None computes them from train.
    """
    train_images = splits[0][0]
    if mean is None or std is None:
        pixels = train_images.astype(np.float64) / 255
        mean = pixels.mean(axis=(0, 2, 3)).tolist()
        std = np.maximum(pixels.std(axis=(0, 2, 3)), 1e-3).tolist()
    shift = torch.tensor(mean).view(1, -1, 1, 1)
    scale = torch.tensor(std).view(1, -1, 1, 1)
    hasher = hashlib.sha256(f"{classes} {mean} {std}".encode())
    datasets = []
    for images, labels in splits:
        hasher.update(str(images.shape).encode())
        hasher.update(np.ascontiguousarray(images).data)
        hasher.update(np.ascontiguousarray(labels).data)
        tensor = torch.from_numpy(images.astype(np.float32, order="C")).div_(255).sub_(shift).div_(scale)
        datasets.append(TensorDataset(tensor, torch.from_numpy(np.ascontiguousarray(labels))))
    train, val, test = datasets
    channels, height, width = train_images.shape[1:]
    shape = (int(channels), int(height), int(width))
    return DataBundle(name, train, val, test, shape, classes, hasher.hexdigest(), augment)


def hold_out(labels: npt.NDArray[np.int64], count: int, seed: int, what: str) -> tuple[npt.NDArray[np.int64], ...]:
    """Sorted indices of (the rest, `count` held out): stratified by class, seeded.

    Raises:
        InputError: a class would be without an image on one of the sides.
    """
    present, images = np.unique(labels, return_counts=True)
    classes = len(present)
    if images.min() < 2:
        raise InputError(f"{what} needs two images of every class, class {present[images.argmin()]} has one")
    if not classes <= count <= len(labels) - classes:
        raise InputError(
            f"{what} must hold between one image a class ({classes}) and all but that many of {len(labels)} images, "
            f"got {count}"
        )

    def split() -> Arrays:
        from sklearn.model_selection import train_test_split  # takes a second to load, which is an evaluator's start

        rest, held = train_test_split(np.arange(len(labels)), test_size=count, random_state=seed, stratify=labels)
        return {"rest": np.sort(rest), "held": np.sort(held)}

    labels_digest = hashlib.sha256(np.ascontiguousarray(labels).data).hexdigest()
    recipe = {"labels": labels_digest, "count": count, "seed": seed, "scikit-learn": version("scikit-learn")}
    found = cached_arrays("split", recipe, split)
    return found["rest"], found["held"]


def make_splits(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], *, val: int, test: int, seed: int
) -> list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]]:
    """Disjoint train, val and test, stratified by class, of a data set that has no split of its own."""
    rest, test_indices = hold_out(labels, test, seed, "the test split")
    train, val_indices = hold_out(labels[rest], val, seed + 1, "the search-validation slice")
    return [(images[indices], labels[indices]) for indices in (rest[train], rest[val_indices], test_indices)]
