"""ImageNet's layout: `train/<class>/<image>` and `val/<class>/<image>`, decoded when an image is asked for.

The `val` folder, whose labels ImageNet publishes, is the test split; the search-validation slice is held out of
`train`. Training sees random crops (Szegedy et al. 2015, section 6), everything else the centre.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from automl.data.bundle import DataBundle, hold_out
from automl.plugins import one_line
from search_spaces.errors import InputError

VERSION = 1
"""Of how images are decoded: raise it when the same files give other tensors."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
CROP = 0.875
"""The centre crop's side as a share of the resized picture's shorter one (224 of 256)."""

AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
CROP_TRIES = 10
REMEDY = "get the images of ILSVRC 2012 from the ImageNet page, or sort your own into one folder a class"


def image_folder(
    *,
    root: Path,
    size: Annotated[int, Field(ge=8, le=2048)] = 224,
    val: Annotated[int, Field(ge=1)] = 3000,
    seed: int = 0,
) -> DataBundle:
    """Images sorted into folders as ImageNet's are, train/<class>/ and val/<class>/, 3 x `size` x `size`.

    Args:
        root: the folder that holds `train` and `val`, both with one folder a class.
        size: pixels a side that a network sees.
        val: images held out of `train`, stratified by class (3,000 as AMC does); the `val` folder is the test split.
        seed: of the split.
    """
    missing = [split for split in ("train", "val") if not (root / split).is_dir()]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise InputError(f"data set 'image_folder': {' and '.join(missing)} {verb} not in {root}; {REMEDY}")
    classes = _classes(root / "train")
    _same_classes(root, classes)
    train_files, test_files = (_listing(root / split, classes) for split in ("train", "val"))
    labels = np.array([file.label for file in train_files], np.int64)
    kept, held = hold_out(labels, val, seed, "the search-validation slice of 'image_folder'")
    train = [train_files[index] for index in kept]
    search_val = [train_files[index] for index in held]
    hasher = hashlib.sha256(f"{VERSION} {size} {len(classes)}\n".encode())
    for split in (train, search_val, test_files):
        # names and sizes stand for the contents: reading all of ImageNet would take minutes at every start
        hasher.update("".join(f"{file.name}\t{file.label}\t{file.bytes}\n" for file in split).encode() + b"\n")
    return DataBundle(
        "image_folder",
        ImageFiles(root / "train", train, size),
        ImageFiles(root / "train", search_val, size),
        ImageFiles(root / "val", test_files, size),
        (3, size, size),
        len(classes),
        hasher.hexdigest(),
    )


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image: its path below the split's folder (with "/"), its label and its size in bytes."""

    name: str
    label: int
    bytes: int


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Images decoded one by one, as (float32 [3, size, size] normalised as ImageNet's, label)."""

    def __init__(self, folder: Path, files: Sequence[ImageFile], size: int) -> None:
        self.folder = folder
        self.files = files
        self.size = size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The centre crop of image `index`.

        Raises:
            InputError: the image cannot be decoded.
        """
        image = self._decoded(index)
        scale = round(self.size / CROP) / min(image.size)
        width, height = (max(self.size, round(scale * side)) for side in image.size)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        return _tensor(resized.crop((left, top, left + self.size, top + self.size))), self.files[index].label

    def augmented(self, index: int, generator: torch.Generator) -> tuple[Tensor, int]:
        """A random crop of image `index`, mirrored half of the time; everything random comes from `generator`.

        Raises:
            InputError: the image cannot be decoded.
        """
        image = self._decoded(index)
        crop = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=random_box(*image.size, generator))
        if _uniform(generator, 0, 1) < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return _tensor(crop), self.files[index].label

    def _decoded(self, index: int) -> Image.Image:
        path = self.folder / self.files[index].name
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except Exception as error:  # Pillow's many decoders fail in many ways on a damaged file
            raise InputError(f"image {path} cannot be decoded ({one_line(error)}); replace or remove it") from error


def random_box(width: int, height: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """A box (left, top, right, bottom) of 8 % to 100 % of the area and of sides 3:4 to 4:3.

    Where none fits after ten draws (a very long picture), the largest centred one whose sides are not longer than 4:3.
    """
    for _ in range(CROP_TRIES):
        area = width * height * _uniform(generator, *AREA)
        aspect = exp(_uniform(generator, log(ASPECT[0]), log(ASPECT[1])))
        w, h = round(sqrt(area * aspect)), round(sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(torch.randint(width - w + 1, (1,), generator=generator))
            top = int(torch.randint(height - h + 1, (1,), generator=generator))
            return left, top, left + w, top + h
    w, h = min(width, round(height * ASPECT[1])), min(height, round(width * ASPECT[1]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _tensor(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image))
    return pixels.permute(2, 0, 1).contiguous().float().div_(255).sub_(MEAN).div_(STD)


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def _classes(folder: Path) -> list[str]:
    """Names of the class folders, sorted."""
    try:
        with os.scandir(folder) as entries:
            classes = sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")
    except OSError as error:
        raise InputError(f"data set 'image_folder': {one_line(error)}") from error
    if not classes:
        raise InputError(f"data set 'image_folder': {folder} holds no folder, one a class is needed; {REMEDY}")
    return classes


def _same_classes(root: Path, classes: Sequence[str]) -> None:
    """InputError unless `val` has the class folders that `train` has."""
    found = _classes(root / "val")
    if found != classes:
        name = min(set(found) ^ set(classes))
        has, lacks = ("train", "val") if name in classes else ("val", "train")
        raise InputError(
            f"data set 'image_folder': {root / has} has the class {name!r}, {root / lacks} does not; "
            "both must hold the same classes"
        )


def _listing(folder: Path, classes: Sequence[str]) -> list[ImageFile]:
    """Every image below a split's folder, sorted by class, then by name.

    Raises:
        InputError: a class has no image, or a folder cannot be read.
    """
    files: list[ImageFile] = []
    for label, name in enumerate(classes):
        try:
            with os.scandir(folder / name) as entries:
                images = [
                    ImageFile(f"{name}/{entry.name}", label, entry.stat().st_size)
                    for entry in entries
                    if entry.name.lower().endswith(SUFFIXES) and entry.name[0] != "."
                ]
        except OSError as error:
            raise InputError(f"data set 'image_folder': {one_line(error)}") from error
        if not images:
            raise InputError(
                f"data set 'image_folder': {folder / name} holds no image ({', '.join(SUFFIXES)}); "
                "remove the folder in train and val, or fill it"
            )
        files += sorted(images, key=lambda image: image.name)
    return files
