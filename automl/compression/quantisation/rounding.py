"""To the nearest, or by chance to one of the two neighbours, so that the mean is the number itself.

Stochastic rounding: Gupta et al., "Deep Learning with Limited Numerical Precision", ICML 2015. It is unbiased between
the least and the largest level; what lies beyond them is clipped, as in rounding to the nearest.
"""

import torch
from torch import Tensor


def to_integer(numbers: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Whole numbers, of the same dtype; ties go to the even one.

    Args:
        numbers: of any shape.
        generator: rounds by chance where given.
    """
    if generator is None:
        return numbers.round()
    return (numbers + _chance(numbers, generator)).floor()


def to_level(numbers: Tensor, levels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Index of the level that each number is rounded to; ties go to the larger one.

    Args:
        numbers: [sets, size].
        levels: [sets, levels], each set's in ascending order.
        generator: rounds by chance where given.
    """
    levels = levels.to(numbers.dtype)
    if generator is None:
        return torch.searchsorted((levels[:, 1:] + levels[:, :-1]) / 2, numbers, right=True)
    above = torch.searchsorted(levels, numbers).clamp(1, levels.shape[1] - 1)
    low, high = levels.gather(1, above - 1), levels.gather(1, above)
    share = torch.where(high > low, (numbers - low) / (high - low), 0.0)
    return above - (_chance(numbers, generator) >= share).long()


def _chance(like: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform in [0, 1); float64, so that a sum with a code of 16 bits is still fair."""
    return torch.rand(like.shape, generator=generator, dtype=torch.float64, device=like.device)
