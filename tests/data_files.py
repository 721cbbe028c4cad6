"""Writes small data sets in the formats in which the real ones are published."""

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]


def balanced(count: int, classes: int, seed: int) -> npt.NDArray[np.uint8]:
    """Labels 0, 1, ..., each as often as the others, shuffled."""
    return np.random.default_rng(seed).permutation(np.arange(count) % classes).astype(np.uint8)


def random_pixels(seed: int, *shape: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_cifar10(root: Path, per_file: int = 20) -> tuple[Pixels, Pixels]:
    """Five training files and a test file; the training images [N, 3, 32, 32] and labels in their order."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    all_images, all_labels = [], []
    for number, name in enumerate([*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]):
        images, labels = random_pixels(number, per_file, 3, 32, 32), balanced(per_file, 10, number)
        records = np.concatenate([labels[:, None], images.reshape(per_file, -1)], axis=1)
        (folder / name).write_bytes(records.tobytes())
        if name != "test_batch.bin":
            all_images.append(images)
            all_labels.append(labels)
    return np.concatenate(all_images), np.concatenate(all_labels)


def write_cifar100(root: Path, train: int = 300, test: int = 100) -> tuple[Pixels, Pixels]:
    """Training and test file; the training images and their fine labels."""
    folder = root / "cifar-100-binary"
    folder.mkdir(parents=True)
    made = {}
    for seed, (name, count) in enumerate({"train.bin": train, "test.bin": test}.items()):
        images, fine = random_pixels(seed, count, 3, 32, 32), balanced(count, 100, seed)
        coarse = fine // 5
        records = np.concatenate([coarse[:, None], fine[:, None], images.reshape(count, -1)], axis=1)
        (folder / name).write_bytes(records.tobytes())
        made[name] = images, fine
    return made["train.bin"]


def write_idx(path: Path, array: Pixels) -> None:
    """An IDX file of unsigned bytes, compressed where the name ends in .gz."""
    content = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(root: Path, train: int = 100, test: int = 30, *, packed: bool = False) -> tuple[Pixels, Pixels]:
    """The four files; the training images [N, 28, 28] and labels."""
    root.mkdir(parents=True, exist_ok=True)
    made = {}
    for seed, (split, count) in enumerate({"train": train, "t10k": test}.items()):
        images, labels = random_pixels(seed, count, 28, 28), balanced(count, 10, seed)
        end = ".gz" if packed else ""
        write_idx(root / f"{split}-images-idx3-ubyte{end}", images)
        write_idx(root / f"{split}-labels-idx1-ubyte{end}", labels)
        made[split] = images, labels
    return made["train"]


def write_image_folder(
    root: Path, classes: Sequence[str] = ("n01", "n02", "n03"), train: int = 6, val: int = 2, side: int = 40
) -> None:
    """`train` and `val` with `classes`; PNG and JPEG in turn, of several shapes, one of them grey."""
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random_pixels(1000 * label + number, side + 7 * number, side + 3 * label, 3)
                image = Image.fromarray(pixels).convert("L" if number == 1 else "RGB")
                image.save(folder / (f"{number}.JPEG" if number % 2 else f"{number}.png"))
