"""Images sorted into folders as ImageNet's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import random_pixels, write_image_folder
from PIL import Image

from automl.data import AugmentsItems, DataBundle, load_data
from automl.data.image_folder import MEAN, STD, ImageFile, ImageFiles, random_box
from automl.metrics import Metric
from automl.models import build_model
from automl.training import TrainingOptions, evaluate, train
from search_spaces.errors import InputError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_image_folder(tmp_path)
    return tmp_path


def load(root: Path, **args: Any) -> DataBundle:
    return load_data("image_folder", {"root": str(root), "size": 32, "val": 6, **args})


def refusal(root: Path, **args: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(root, **args)
    message = str(caught.value)
    assert "\n" not in message
    return message


def names(dataset: Any) -> list[str]:
    return [file.name for file in dataset.files]


def test_splits(root: Path) -> None:
    (root / "train" / "n01" / "readme.txt").write_text("no image")
    (root / "train" / "n01" / "._0.png").write_bytes(b"what some systems leave beside a file")
    (root / "train" / ".hidden").mkdir()
    bundle = load(root)
    assert (bundle.classes, bundle.input_shape, bundle.augment) == (3, (3, 32, 32), None)
    assert [len(split.files) for split in (bundle.train, bundle.val, bundle.test)] == [12, 6, 6]  # type: ignore[attr-defined]
    assert not set(names(bundle.train)) & set(names(bundle.val))
    assert [label for _, label in bundle.val] == [0, 0, 1, 1, 2, 2]  # type: ignore[attr-defined]
    for image, label in (bundle.train[0], bundle.val[5], bundle.test[3]):
        assert (image.shape, image.dtype, type(label)) == ((3, 32, 32), torch.float32, int)
    again, other = load(root), load(root, seed=1)
    assert (names(again.val), again.digest) == (names(bundle.val), bundle.digest)
    assert names(other.val) != names(bundle.val)
    assert len({bundle.digest, other.digest, load(root, size=24).digest}) == 3


def test_centre_crop_and_normalisation(tmp_path: Path) -> None:
    """A picture whose shorter side is what it is resized to is only cropped: exact pixels."""
    pixels = random_pixels(0, 64, 100, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image, label = ImageFiles(tmp_path, [ImageFile("a.png", 2, 0)], 56)[0]
    expected = (torch.from_numpy(pixels[4:60, 22:78]).permute(2, 0, 1).float() / 255 - MEAN) / STD
    assert label == 2
    torch.testing.assert_close(image, expected)


@pytest.mark.parametrize("shape", [(5, 5), (300, 20), (20, 300)])
def test_any_shape_is_resized(tmp_path: Path, shape: tuple[int, int]) -> None:
    Image.fromarray(np.full((*shape, 3), 128, np.uint8)).save(tmp_path / "a.png")
    dataset = ImageFiles(tmp_path, [ImageFile("a.png", 0, 0)], 32)
    expected = ((128 / 255 - MEAN) / STD).expand(3, 32, 32)
    torch.testing.assert_close(dataset[0][0], expected)
    torch.testing.assert_close(dataset.augmented(0, torch.Generator().manual_seed(0))[0], expected)


def test_augmentation_follows_its_generator(root: Path) -> None:
    train_split = load(root).train
    assert isinstance(train_split, AugmentsItems)
    one, same, other = (train_split.augmented(0, torch.Generator().manual_seed(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_random_boxes_keep_to_their_ranges() -> None:
    generator = torch.Generator().manual_seed(0)
    shares, aspects = [], []
    for _ in range(2000):
        left, top, right, bottom = random_box(400, 300, generator)
        assert 0 <= left < right <= 400
        assert 0 <= top < bottom <= 300
        shares.append((right - left) * (bottom - top) / (400 * 300))
        aspects.append((right - left) / (bottom - top))
    assert 0.075 < min(shares) < 0.12
    assert max(shares) > 0.9
    assert 0.73 < min(aspects) < 0.8
    assert 1.25 < max(aspects) < 1.36
    assert random_box(1000, 10, generator) == (493, 0, 506, 10)  # nothing fits: the centre, 4:3


def test_trains_alike_whatever_the_number_of_workers(root: Path) -> None:
    bundle = load(root)
    weights = []
    for workers in (0, 2):
        model = build_model("lenet300_100", classes=3, input_shape=(3, 32, 32))
        train(model, bundle, TrainingOptions(epochs=1, batch_size=6, workers=workers))
        weights.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
    assert torch.equal(*weights)
    seen = evaluate(model, bundle.val, Metric("images", lambda outputs, labels: float(len(labels))), batch_size=4)
    assert seen == 6


@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_image_is_named_in_one_line(root: Path, workers: int) -> None:
    bundle = load(root)
    file = root / "train" / "n02" / "3.JPEG"
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"nothing like it"):
        file.write_bytes(content)
        model = build_model("lenet300_100", classes=3, input_shape=(3, 32, 32))
        split = bundle.train if "n02/3.JPEG" in names(bundle.train) else bundle.val
        with pytest.raises(InputError) as caught:
            evaluate(model, split, workers=workers)
        assert str(caught.value).startswith(f"image {file} cannot be decoded")
        assert "\n" not in str(caught.value)


def test_what_is_missing_is_said(root: Path) -> None:
    assert "train and val are not in" in refusal(root / "nowhere")
    (root / "val").rename(root / "validation")
    assert "val is not in" in refusal(root)
    (root / "val").mkdir()
    assert "one a class is needed" in refusal(root)  # ImageNet's own archive of val is not sorted
    (root / "val").rmdir()
    (root / "validation").rename(root / "val")
    (root / "val" / "n03").rename(root / "val" / "n04")
    assert "'n03'" in refusal(root)
    (root / "val" / "n04").rename(root / "val" / "n03")
    for image in (root / "val" / "n02").iterdir():
        image.unlink()
    message = refusal(root)
    assert "n02 holds no image" in message


def test_arguments_out_of_range(root: Path) -> None:
    assert "got 100" in refusal(root, val=100)
    assert "'size'" in refusal(root, size=4)
    for image in sorted((root / "train" / "n01").iterdir())[1:]:
        image.unlink()
    assert "two images of every class" in refusal(root)
