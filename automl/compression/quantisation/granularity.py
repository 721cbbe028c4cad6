"""Which numbers share a scale: a weight tensor as sets of numbers in rows, and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from search_spaces.number_formats import group_size


@dataclass(frozen=True, eq=False)
class Rows:
    """Sets of numbers with a scale in common, as every scheme sees them.

    Attributes:
        values: [sets, size], float64, 0 where not valid.
        valid: [sets, size], False for weights that a mask holds at zero and for what fills up a last, smaller group.
            No scale depends on them.
    """

    values: Tensor
    valid: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the valid places of each set, [sets, 1]; 0 where there is none."""
        return (values * self.valid).sum(1, keepdim=True) / self.valid.sum(1, keepdim=True).clamp(min=1)

    def quantile(self, share: float | Tensor) -> Tensor:
        """Quantiles of each set's valid values, linearly interpolated, [sets, shares]; 0 where there is none.

        Args:
            share: one, or several [shares], in [0, 1].
        """
        ordered = self.values.masked_fill(~self.valid, torch.inf).sort(dim=1).values
        last = self.valid.sum(1, keepdim=True) - 1
        place = torch.as_tensor(share, dtype=ordered.dtype, device=ordered.device).reshape(1, -1) * last.clamp(min=0)
        below = place.floor().long()
        above = torch.minimum(below + 1, last.clamp(min=0))
        low, high = ordered.gather(1, below), ordered.gather(1, above)
        return torch.where(last < 0, 0.0, low + (high - low) * (place - below))


def rows_of(weight: Tensor, mask: Tensor | None, granularity: str) -> Rows:
    """The rows of a weight tensor [out, ...] under a mask of its shape (True stays)."""
    stay = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
    values = weight.detach().double().masked_fill(~stay, 0.0)
    return Rows(split(values, granularity), split(stay, granularity))


def split(tensor: Tensor, granularity: str) -> Tensor:
    """[out, ...] -> [sets, size]; the last group of a channel is filled up with zeros."""
    if granularity == "tensor":
        return tensor.reshape(1, -1)
    rows = tensor.reshape(len(tensor), -1)
    size = group_size(granularity)
    if size is None:
        return rows
    size = min(size, rows.shape[1])
    return F.pad(rows, (0, -rows.shape[1] % size)).reshape(-1, size)


def join(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `split`: [sets, size] -> a tensor of that shape."""
    if rows.numel() == prod(shape):
        return rows.reshape(tuple(shape))
    return rows.reshape(shape[0], -1)[:, : prod(shape[1:])].reshape(tuple(shape))
