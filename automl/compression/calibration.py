"""What is given for calibration: images that the network takes and their labels, checked and drawn."""

import torch
from torch import Tensor

from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph


def draw(total: int, count: int, seed: int) -> Tensor:
    """Indices of up to `count` random ones of `total`, int64; of a larger count the first are the same.

    >>> draw(5, 3, seed=0).tolist() == draw(5, 9, seed=0)[:3].tolist()
    True
    """
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count]


def check_images(images: Tensor, graph: ModelGraph) -> Tensor:
    """The images, where the network can be run on them.

    Args:
        images: [N, *input shape], N >= 1; floating point, or whole numbers (tokens) where the network reads those.
        graph: of the network.

    Raises:
        InputError: they are something else, of another shape, or not finite.
    """
    whole = next(operator.dtype for operator in graph.full_operators if operator.kind == "input").startswith("int")
    if not isinstance(images, Tensor) or images.is_floating_point() == whole or images.is_complex():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        wanted = "tensor of whole numbers" if whole else "floating-point tensor"
        raise InputError(f"calibration images are a {wanted}, got {kind}")
    shape = graph.input_shape
    if images.ndim != len(shape) + 1 or tuple(images.shape[1:]) != tuple(shape) or not len(images):
        raise InputError(
            f"calibration images have the shape [N, {', '.join(map(str, shape))}] of the network's input with N >= 1, "
            f"got {list(images.shape)}"
        )
    if not torch.isfinite(images).all():
        raise InputError("calibration images are finite numbers, some are NaN or infinite; leave those out")
    return images


def check_labels(labels: Tensor, images: Tensor) -> Tensor:
    """The labels, where there is one for each image.

    Args:
        labels: whole numbers of at least 0, [N], or [N, positions] of a network that answers at every position.
        images: [N, ...].

    Raises:
        InputError: they are something else, negative, or of another number.
    """
    if not isinstance(labels, Tensor) or labels.dtype not in _WHOLE:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise InputError(f"calibration labels are a tensor of whole numbers, got {kind}")
    if labels.ndim < 1 or len(labels) != len(images):
        raise InputError(
            f"there is one calibration label for each of the {len(images)} images, got labels of shape "
            f"{list(labels.shape)}"
        )
    if bool((labels < 0).any()):
        raise InputError(f"calibration labels are numbers of classes, at least 0, got {int(labels.min())}")
    return labels.long()


_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
