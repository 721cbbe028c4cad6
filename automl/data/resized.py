"""A data set whose images are brought to another resolution."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from automl.data.bundle import Augment, DataBundle, Images
from search_spaces.resizing import resize
from search_spaces.resolution import Resolution


def resized(data: DataBundle, size: Resolution | None) -> DataBundle:
    """The data set at a resolution; as it is where that is None or its own.

    Training images are augmented as they are and brought to size afterwards, by `augment`: the size of a shift is that
    of the whole picture. So `train` itself yields them unchanged.
    """
    if size is None or size == data.input_shape[1:]:
        return data
    return replace(
        data,
        val=_smaller(data.val, size),
        test=_smaller(data.test, size),
        input_shape=(data.input_shape[0], *size),
        digest=hashlib.sha256(f"{data.digest} {size}".encode()).hexdigest(),
        augment=_Resized(data.augment, size),
    )


@dataclass(frozen=True)
class _Resized:
    """Batches that were augmented, at a size."""

    augment: Augment | None
    size: Resolution

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """[N, C, H, W] -> [N, C, *size]."""
        return resize(images if self.augment is None else self.augment(images, generator), self.size)


def _smaller(images: Images, size: Resolution) -> Images:
    if isinstance(images, TensorDataset):  # held in memory, where evaluation splits it without a loader
        pixels, *rest = images.tensors
        return TensorDataset(resize(pixels, size), *rest)
    return _ResizedImages(images, size)


class _ResizedImages(Dataset[Any]):
    """Images resized as they are read."""

    def __init__(self, images: Images, size: Resolution) -> None:
        self._images, self._size = images, size

    def __len__(self) -> int:
        return len(self._images)  # type: ignore[arg-type]  # torch's Dataset declares no __len__

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image, label = self._images[index]
        return resize(image, self._size), label
