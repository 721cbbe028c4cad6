"""The images of a data set in batches: shuffled and augmented to train on, in their own order to look at."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from automl.compression.calibration import draw
from automl.data.bundle import AugmentsItems, DataBundle, Images
from search_spaces.errors import InputError


def training_batches(
    data: DataBundle, batch_size: int, *, seed: int, epoch: int, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled and augmented batches of one epoch; the order and the changes depend on (seed, epoch) alone.

    Args:
        data: its training split.
        batch_size: images a batch; the last one may be smaller.
        seed: of the training.
        epoch: its number.
        workers: processes that decode images that are not held in memory.
    """
    generator = torch.Generator().manual_seed(mixed(seed, epoch))
    order = torch.randperm(length(data.train), generator=generator)
    if isinstance(data.train, TensorDataset):
        images, labels = data.train.tensors
        source: Iterator[tuple[Tensor, Tensor]] = (
            (images[index], labels[index]) for index in torch.split(order, batch_size)
        )
    else:
        epoch_view = _EpochView(data.train, mixed(seed, epoch))
        source = _loaded(epoch_view, batch_size, workers, order.tolist())
    for inputs, targets in source:
        yield (inputs if data.augment is None else data.augment(inputs, generator)), targets


class _EpochView(Dataset[Any]):
    """A data set as one epoch of training sees it: item i's augmentation is drawn from (seed, i)."""

    def __init__(self, dataset: Images, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return length(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.dataset, AugmentsItems):
            return self.dataset.augmented(index, torch.Generator().manual_seed(mixed(self.seed, index)))
        return self.dataset[index]


def batches(dataset: Images, batch_size: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All of a data set in its own order."""
    if isinstance(dataset, TensorDataset):
        images, labels = dataset.tensors
        yield from zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True)
    else:
        yield from _loaded(dataset, batch_size, workers)


def _loaded(
    dataset: Images, batch_size: int, workers: int, order: Sequence[int] | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of a data set that is decoded as it is read, in the order given or its own.

    An input error of a worker process comes without torch's traceback around it.
    """
    # torch draws a seed for the workers, which nothing here uses; not from the caller's random state
    loader = DataLoader(dataset, batch_size, sampler=order, num_workers=workers, generator=torch.Generator())
    try:
        yield from loader
    except InputError as error:
        last = str(error).splitlines()[-1]
        raise InputError(last.removeprefix(f"{InputError.__module__}.{InputError.__name__}: ")) from error


def calibration_data(data: DataBundle, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Up to `count` random training images [N, C, H, W], not augmented, and their labels [N]."""
    images, labels = zip(*(data.train[int(index)] for index in draw(length(data.train), count, seed)), strict=True)
    return torch.stack(images), torch.stack([torch.as_tensor(label) for label in labels])


def length(dataset: Images) -> int:
    """Number of images."""
    return len(dataset)  # type: ignore[arg-type]  # torch's Dataset declares no __len__


def mixed(seed: int, number: int) -> int:
    """A seed for each (seed, number), far apart for neighbours (Knuth's multiplicative constants)."""
    return (seed * 6364136223846793005 + number * 1442695040888963407 + 1) % 2**63
