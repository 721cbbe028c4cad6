"""The 1,797 handwritten digits that scikit-learn ships: small enough for a demonstration, proves little."""

from importlib.metadata import version
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from automl.data.augment import ShiftAndFlip
from automl.data.bundle import DataBundle, make_splits, tensor_bundle
from automl.data.cached import Arrays, cached_arrays


def digits(*, size: Literal[8, 16, 32] = 16, val: Annotated[int, Field(ge=1)] = 357, seed: int = 0) -> DataBundle:
    """scikit-learn's digits, 1 x `size` x `size`: 1,080 for training, `val` for search validation, 360 for the test.

    Args:
        size: pixels a side; 8 is the original, the others are interpolated from it.
        val: images held out of the training data.
        seed: of the split.
    """
    raw = cached_arrays("digits", {"scikit-learn": version("scikit-learn")}, _load)
    images = torch.from_numpy(raw["images"]).float().mul(255 / 16)[:, None]
    if size != images.shape[-1]:
        images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    pixels = images.round().clamp(0, 255).to(torch.uint8).numpy()
    splits = make_splits(pixels, raw["labels"], val=val, test=360, seed=seed)
    return tensor_bundle("digits", splits, classes=10, augment=ShiftAndFlip(pad=size // 16) if size > 8 else None)


def _load() -> Arrays:
    """As scikit-learn has them: images [1797, 8, 8] of 0 to 16."""
    from sklearn.datasets import load_digits  # takes a second to load, which is an evaluator's start

    raw = load_digits()
    return {"images": raw.images, "labels": raw.target.astype(np.int64)}
