"""Digits, glyphs, splits, augmentation, and data sets that a user brings."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from automl.cache import cache_dir
from automl.data import DataBundle, load_data
from automl.data.augment import ShiftAndFlip
from automl.data.bundle import hold_out, make_splits, tensor_bundle
from automl.data.glyphs import render, rendered
from search_spaces.errors import InputError

SMALL = {"classes": 10, "size": 16, "images": 1000, "difficulty": 0.5, "seed": 0}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


def arrays(dataset: Any) -> tuple[torch.Tensor, torch.Tensor]:
    assert isinstance(dataset, TensorDataset)
    images, labels = dataset.tensors
    return images, labels


@pytest.mark.parametrize("size", [8, 16, 32])
def test_digits(size: int) -> None:
    bundle = load_data("digits", {"size": size})
    assert (bundle.classes, bundle.input_shape) == (10, (1, size, size))
    assert [len(arrays(split)[1]) for split in (bundle.train, bundle.val, bundle.test)] == [1080, 357, 360]
    images = arrays(bundle.train)[0]
    assert abs(float(images.mean())) < 1e-4
    assert abs(float(images.std()) - 1) < 1e-3
    assert bundle.digest == load_data("digits", {"size": size}).digest
    assert bundle.digest != load_data("digits", {"size": size, "seed": 1}).digest


def test_splits_are_disjoint_stratified_and_seeded() -> None:
    labels = np.repeat(np.arange(4), [40, 80, 120, 160]).astype(np.int64)
    images = np.arange(400, dtype=np.uint32).view(np.uint8).reshape(400, 1, 2, 2)  # every image tells its number
    splits = make_splits(images, labels, val=80, test=40, seed=3)
    numbers = [part.copy().reshape(-1).view(np.uint32).tolist() for part, _ in splits]
    assert sorted(number for part in numbers for number in part) == list(range(400))
    assert [np.bincount(part).tolist() for _, part in splits] == [[28, 56, 84, 112], [8, 16, 24, 32], [4, 8, 12, 16]]
    for part, number in zip(splits, numbers, strict=True):
        assert part[1].tolist() == labels[number].tolist()
    assert np.array_equal(hold_out(labels, 50, 0, "it")[1], hold_out(labels, 50, 0, "it")[1])
    assert not np.array_equal(hold_out(labels, 50, 0, "it")[1], hold_out(labels, 50, 1, "it")[1])
    for count in (3, 397):
        with pytest.raises(InputError, match=f"got {count}"):
            hold_out(labels, count, 0, "it")


def test_digest_tells_labels_pixels_and_normalisation() -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (6, 1, 4, 4), dtype=np.uint8), np.arange(6) % 2
    brighter, flipped = images.copy(), labels.copy()
    brighter[5, 0, 3, 3] ^= 1
    flipped[0] ^= 1

    def digest(pixels: Any, classes: Any, mean: Any = (0.5,)) -> str:
        part = (pixels, classes)
        return tensor_bundle("it", [part, part, part], classes=2, mean=mean, std=(1.0,)).digest

    assert digest(images, labels) == digest(images.copy(), labels.copy())
    assert len({digest(images, labels), digest(brighter, labels), digest(images, flipped)}) == 3
    assert digest(images, labels) != digest(images, labels, (0.4,))


def test_shifts_and_flips() -> None:
    """A single bright pixel moves by at most `pad`, over all of that range, and is mirrored half of the time."""
    images = torch.zeros(500, 2, 9, 9)
    images[:, :, 4, 2] = 1
    shifted = ShiftAndFlip(pad=2)(images, torch.Generator().manual_seed(0))
    places = shifted.nonzero()
    assert len(places) == 1000
    assert set(places[:, 2].tolist()) == set(range(2, 7))
    assert set(places[:, 3].tolist()) == set(range(5))
    flipped = ShiftAndFlip(pad=0, flip=True)(images, torch.Generator().manual_seed(0))
    columns = flipped.nonzero()[:, 3]
    assert set(columns.tolist()) == {2, 6}
    assert 400 < int((columns == 6).sum()) < 600
    assert torch.equal(flipped[:, 0], flipped[:, 1])


def test_glyphs_bundle() -> None:
    bundle = load_data("glyphs", {"classes": 10, "images": 1000})
    assert (bundle.classes, bundle.input_shape) == (10, (1, 16, 16))
    assert [len(arrays(split)[1]) for split in (bundle.train, bundle.val, bundle.test)] == [700, 100, 200]
    assert torch.bincount(arrays(bundle.test)[1]).tolist() == [20] * 10
    assert len(list(cache_dir("data").glob("glyphs-*"))) == 1


def test_glyphs_are_the_same_every_time() -> None:
    images, labels = render(**SMALL)
    assert (images.shape, images.dtype, labels.dtype) == ((1000, 1, 16, 16), np.uint8, np.int64)
    state = torch.get_rng_state()
    again, labels_again = render(**SMALL)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(images, again)
    assert np.array_equal(labels, labels_again)
    assert not np.array_equal(images, render(**{**SMALL, "seed": 1})[0])


def test_glyphs_differ_by_class_more_when_they_are_easier() -> None:
    """The nearest class mean reads clean characters far better than difficult ones."""
    scores = []
    for difficulty in (0.0, 1.0):
        images, labels = render(**{**SMALL, "difficulty": difficulty})
        pixels = images.reshape(1000, -1).astype(np.float64)
        pixels -= pixels.mean(axis=1, keepdims=True)
        means = np.stack([pixels[:500][labels[:500] == label].mean(axis=0) for label in range(10)])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        scores.append(np.mean((pixels[500:] @ means.T).argmax(axis=1) == labels[500:]))
    assert scores[0] > 0.8 > scores[1] + 0.2


def test_glyphs_come_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    first = rendered(**SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["automl.data.glyphs"], "render", lambda *args: pytest.fail("rendered again"))
        second = rendered(**SMALL)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("damage", ["cut short", "one byte changed", "something else", "empty"])
def test_damaged_cache_is_rendered_again(damage: str) -> None:
    first = rendered(**SMALL)
    (file,) = cache_dir("data").iterdir()
    whole = file.read_bytes()
    middle = len(whole) // 2
    changed = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    damaged = {"cut short": whole[:-9], "one byte changed": changed, "something else": b"no tensors", "empty": b""}
    file.write_bytes(damaged[damage])
    again = rendered(**SMALL)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert file.read_bytes() == whole


def test_what_has_been_loaded_once_comes_without_scikit_learn(tmp_path: Path) -> None:
    """It is a second of every evaluator's start."""
    program = (
        "import sys; from automl.data import load_data; print(load_data('digits').digest, 'sklearn' in sys.modules)"
    )
    environment = {**os.environ, "TRIMTAB_CACHE": str(tmp_path)}
    first, second = (
        subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    )
    digest = load_data("digits").digest
    assert [each.stdout.split() for each in (first, second)] == [[digest, "True"], [digest, "False"]]


def test_unknown_name_and_arguments() -> None:
    for name, args, said in (
        ("digit", {}, "did you mean 'digits'"),
        ("digits", {"sizes": 8}, "did you mean 'size'"),
        ("digits", {"size": 12}, "'size'"),
        ("digits", {"val": 0}, "'val'"),
        ("digits", {"val": 5000}, "got 5000"),
        ("glyphs", {"difficulty": "hard"}, "'difficulty'"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            load_data(name, args)
        assert "\n" not in str(caught.value)


def test_own_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_data_set.py").write_text(
        "import numpy as np\n"
        "from automl.data.bundle import tensor_bundle\n"
        "def squares(*, side):\n"
        "    if side > 9:\n"
        "        raise ValueError('too large\\nby far')\n"
        "    part = np.zeros((4, 1, side, side), np.uint8), np.arange(4) % 2\n"
        "    return tensor_bundle('squares', [part, part, part], classes=2)\n"
        "made = squares(side=4)\n"
        "def nothing():\n"
        "    return 3\n"
    )
    assert load_data("own_data_set:squares", {"side": 6}).input_shape == (1, 6, 6)
    assert isinstance(load_data("own_data_set:made"), DataBundle)
    for name, args, said in (
        ("own_data_set:squares", {"side": 10}, "ValueError: too large$"),
        ("own_data_set:squares", {}, "side"),
        ("own_data_set:nothing", {}, "gave a int"),
        ("own_data_set:square", {}, "did you mean 'squares'"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            load_data(name, args)
        assert "\n" not in str(caught.value)
