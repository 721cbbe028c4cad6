"""CIFAR, MNIST and Fashion-MNIST from files in their published formats."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import balanced, random_pixels, write_cifar10, write_cifar100, write_idx, write_mnist
from torch.utils.data import TensorDataset

from automl.data import DataBundle, data_names, load_data
from search_spaces.errors import InputError


def arrays(dataset: Any) -> tuple[torch.Tensor, torch.Tensor]:
    assert isinstance(dataset, TensorDataset)
    images, labels = dataset.tensors
    return images, labels


def refusal(name: str, root: Path, **args: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_data(name, {"root": str(root), **args})
    message = str(caught.value)
    assert "\n" not in message
    return message


def denormalised(images: torch.Tensor, mean: list[float], std: list[float]) -> np.ndarray:
    scaled = images * torch.tensor(std).view(1, -1, 1, 1) + torch.tensor(mean).view(1, -1, 1, 1)
    return scaled.mul(255).round().to(torch.uint8).numpy()


def check_splits(bundle: DataBundle, source: np.ndarray, labels: np.ndarray, val: int, classes: int) -> None:
    """Train and val are the training file, each image once, and val has every class equally often."""
    rest, held = arrays(bundle.train), arrays(bundle.val)
    assert (len(rest[1]), len(held[1])) == (len(labels) - val, val)
    assert torch.bincount(held[1], minlength=classes).tolist() == [val // classes] * classes
    mean, std = {3: ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]), 1: ([0.1307], [0.3081])}[source.shape[1]]
    pixels = np.concatenate([denormalised(images, mean, std) for images, _ in (rest, held)])
    together = sorted(
        zip(map(bytes, pixels.reshape(len(labels), -1)), torch.cat([rest[1], held[1]]).tolist(), strict=True)
    )
    assert together == sorted(zip(map(bytes, source.reshape(len(labels), -1)), labels.tolist(), strict=True))


def test_cifar10(tmp_path: Path) -> None:
    images, labels = write_cifar10(tmp_path)
    bundle = load_data("cifar10", {"root": str(tmp_path), "val": 30})
    assert (bundle.name, bundle.classes, bundle.input_shape) == ("cifar10", 10, (3, 32, 32))
    check_splits(bundle, images, labels, 30, 10)
    assert len(arrays(bundle.test)[0]) == 20
    assert bundle.augment is not None
    batch = arrays(bundle.train)[0][:4]
    changed = bundle.augment(batch, torch.Generator().manual_seed(0))
    assert changed.shape == batch.shape
    assert not torch.equal(changed, batch)
    same = load_data("cifar10", {"root": str(tmp_path / "cifar-10-batches-bin"), "val": 30})
    assert same.digest == bundle.digest
    other = load_data("cifar10", {"root": str(tmp_path), "val": 30, "seed": 1})
    assert other.digest != bundle.digest
    assert not torch.equal(arrays(other.val)[0], arrays(bundle.val)[0])


def test_cifar100_has_the_fine_labels(tmp_path: Path) -> None:
    images, labels = write_cifar100(tmp_path)
    bundle = load_data("cifar100", {"root": str(tmp_path), "val": 100})
    assert (bundle.classes, bundle.input_shape) == (100, (3, 32, 32))
    held_images, held_labels = arrays(bundle.val)
    assert sorted(held_labels.tolist()) == list(range(100))
    pixels = denormalised(held_images, [0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762])
    by_pixels = {bytes(image): int(label) for image, label in zip(images.reshape(300, -1), labels, strict=True)}
    assert [by_pixels[bytes(image)] for image in pixels.reshape(100, -1)] == held_labels.tolist()


def test_mnist_plain_and_packed_are_the_same(tmp_path: Path) -> None:
    images, labels = write_mnist(tmp_path / "plain")
    write_mnist(tmp_path / "packed", packed=True)
    plain = load_data("mnist", {"root": str(tmp_path / "plain"), "val": 20})
    packed = load_data("mnist", {"root": str(tmp_path / "packed"), "val": 20})
    assert plain.digest == packed.digest
    assert (plain.classes, plain.input_shape) == (10, (1, 28, 28))
    check_splits(plain, images[:, None], labels, 20, 10)


def test_fashion_mnist(tmp_path: Path) -> None:
    write_mnist(tmp_path, packed=True)
    bundle = load_data("fashion_mnist", {"root": str(tmp_path), "val": 20})
    assert (bundle.name, len(arrays(bundle.test)[0])) == ("fashion_mnist", 30)
    assert bundle.digest != load_data("mnist", {"root": str(tmp_path), "val": 20}).digest  # normalised otherwise


def test_missing_files_are_named_with_where_to_get_them(tmp_path: Path) -> None:
    message = refusal("cifar10", tmp_path / "nowhere")
    assert all(part in message for part in ("data_batch_5.bin", "test_batch.bin", "nowhere", "binary", "CIFAR page"))
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    message = refusal("cifar10", tmp_path)
    assert "data_batch_3.bin is not in" in message
    assert "data_batch_2" not in message
    assert "train.bin, test.bin are not in" in refusal("cifar100", tmp_path)
    assert "t10k-labels-idx1-ubyte" in refusal("mnist", tmp_path)
    assert "Zalando" in refusal("fashion_mnist", tmp_path)
    with pytest.raises(InputError, match="'mnist' needs the argument 'root'"):
        load_data("mnist", {})


def test_archive_that_is_there_is_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "cifar-100-binary.tar.gz").write_bytes(b"")
    assert "unpack cifar-100-binary.tar.gz" in refusal("cifar100", tmp_path)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(pickle.dumps({b"data": b"", b"labels": []}))
    for root in (tmp_path, folder):
        message = refusal("cifar10", root)
        assert "python version" in message
        assert "binary version" in message


def cut_short(content: bytes) -> bytes:
    return content[:-1]


def label_too_large(content: bytes) -> bytes:
    return b"\x0a" + content[1:]


@pytest.mark.parametrize(
    ("damage", "said"), [(cut_short, "damaged"), (label_too_large, "label 10"), (lambda content: b"", "damaged")]
)
def test_damaged_cifar(tmp_path: Path, damage: Callable[[bytes], bytes], said: str) -> None:
    write_cifar10(tmp_path)
    file = tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin"
    file.write_bytes(damage(file.read_bytes()))
    message = refusal("cifar10", tmp_path, val=10)
    assert said in message
    assert "data_batch_2.bin" in message


def test_damaged_idx(tmp_path: Path) -> None:
    images, labels = tmp_path / "train-images-idx3-ubyte.gz", tmp_path / "train-labels-idx1-ubyte"
    write_mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    write_idx(images, random_pixels(0, 100, 28, 28))
    whole = images.read_bytes()
    for content in (whole[:-20], whole[:40] + b"\0\0\0\0" + whole[44:], b"no archive", b""):
        images.write_bytes(content)
        assert "train-images-idx3-ubyte.gz" in refusal("mnist", tmp_path, val=10)
    images.write_bytes(whole)
    write_idx(labels, balanced(99, 10, 0))
    assert "99 labels" in refusal("mnist", tmp_path, val=10)
    write_idx(labels, balanced(100, 11, 0))
    assert "label 10" in refusal("mnist", tmp_path, val=10)
    write_idx(labels, random_pixels(0, 10, 10))
    assert "no IDX file of bytes in 1 dimensions" in refusal("mnist", tmp_path, val=10)
    content = labels.read_bytes()
    write_idx(labels, balanced(100, 10, 0))
    for damaged in (labels.read_bytes()[:-1], labels.read_bytes() + b"\0", labels.read_bytes()[:6]):
        labels.write_bytes(damaged)
        assert "damaged" in refusal("mnist", tmp_path, val=10)
    labels.write_bytes(content)


@pytest.mark.parametrize("val", [5, 91, 5000])
def test_validation_slice_that_does_not_fit(tmp_path: Path, val: int) -> None:
    write_mnist(tmp_path)
    message = refusal("mnist", tmp_path, val=val)
    assert f"got {val}" in message
    assert "100 images" in message


def test_every_data_set_has_a_description() -> None:
    names = dict(data_names())
    assert list(names) == [
        "digits",
        "glyphs",
        "logbook",
        "cifar10",
        "cifar100",
        "mnist",
        "fashion_mnist",
        "image_folder",
    ]
    assert all(20 < len(text) < 120 for text in names.values())
