"""From where to where a quantiser reaches: the range of each set of numbers.

| method | range | source |
|---|---|---|
| `min_max` | all numbers: nothing is clipped | |
| `percentile`, `percentile:99.9` | all but the outermost share | McKinstry et al., arXiv 1809.04191 |
| `mse` | least mean squared error, among shrunken ranges; never worse than `min_max` | Sung et al., arXiv 1511.06488 |
| `entropy` | least Kullback-Leibler divergence of the histograms | Migacz, "8-bit Inference with TensorRT", GTC 2017 |

Every range includes zero, which therefore always has a code of its own: padding and masks stay exactly what they are.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from automl.compression.quantisation.granularity import Rows
from search_spaces.errors import InputError, did_you_mean

METHODS = ("min_max", "percentile", "mse", "entropy")
WEIGHT_METHODS = METHODS[:3]
"""A channel has too few weights for a histogram."""

PERCENTILE = 99.99
"""Per cent of the numbers (of their magnitudes, where the range is symmetric) that are not clipped, unless the method
says another."""

SHRINKS = tuple(0.93**power for power in range(1, 41))
"""Of the range that `mse` tries: down to a twentieth, as sets with outliers need at 2 bits."""

BINS = 2048
"""Of the histogram of magnitudes under `entropy`, as in TensorRT."""

Represent = Callable[[Tensor, Tensor], Tensor]
"""(low [sets, 1], high [sets, 1]) -> the values [sets, size] that a quantiser of that range gives."""


def check_method(method: str, methods: tuple[str, ...] = METHODS) -> None:
    """InputError where there is no such method."""
    name, colon, _ = method.partition(":")
    if name not in methods:
        raise InputError(f"there is no calibration {method!r} here{did_you_mean(method, methods)}")
    if name == "percentile":
        _percent(method)
    elif colon:
        raise InputError(f"the calibration {name!r} takes no number, got {method!r}")


def _percent(method: str) -> float:
    _, colon, share = method.partition(":")
    try:
        found = float(share) if colon else PERCENTILE
    except ValueError:
        found = 0.0
    if not 50.0 < found <= 100.0:
        raise InputError(f"a percentile is 'percentile:P' with P above 50 and at most 100, got {method!r}")
    return found


def bounds(rows: Rows, method: str, levels: int, represent: Represent, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Ends of the range of each set, (low [sets, 1] <= 0, high [sets, 1] >= 0).

    Args:
        rows: the numbers.
        method: one that `check_method` lets pass.
        levels: that the quantiser has on one side of zero, zero included; for `entropy`.
        represent: the quantiser; for `mse`.
        symmetric: whether low is -high.
    """
    if method.startswith("percentile"):
        return _percentile(rows, _percent(method) / 100, symmetric)
    if symmetric:
        high = rows.values.abs().amax(1, keepdim=True)
        low = -high
    else:
        low = rows.values.amin(1, keepdim=True).clamp(max=0.0)
        high = rows.values.amax(1, keepdim=True).clamp(min=0.0)
    if method == "mse":
        return _least_error(rows, low, high, represent, symmetric)
    if method == "entropy":
        threshold = torch.stack(
            [
                rows.values.new_tensor(entropy_threshold(row[valid].abs().cpu().numpy(), levels))
                for row, valid in zip(rows.values, rows.valid, strict=True)
            ]
        )[:, None]
        return torch.maximum(low, -threshold), torch.minimum(high, threshold)
    return low, high


def entropy_threshold(magnitudes: npt.NDArray[np.float64], levels: int) -> float:
    """Where to clip, so that the histogram of what is left says most about that of the numbers.

    For each number of bins, the histogram cut there (what is beyond counts in its last bin) is compared with itself
    merged into so many levels and spread again over the bins that are not empty. The first bin holds what becomes zero
    anyway, such as all that a ReLU cut off, and counts as the second does.

    Args:
        magnitudes: [n], at least 0.
        levels: to merge into. Where the histogram has no more bins than that it can tell nothing, and nothing is
            clipped.
    """
    largest = float(magnitudes.max(initial=0.0))
    if levels >= BINS or largest == 0.0:
        return largest
    counts = np.histogram(magnitudes / largest, bins=BINS, range=(0.0, 1.0))[0].astype(np.float64)
    counts[0] = counts[1]
    divergences = _divergences(counts, levels)
    # of equal ones that which clips least
    return largest * (BINS - int(divergences[::-1].argmin())) / BINS


def _divergences(counts: npt.NDArray[np.float64], levels: int) -> npt.NDArray[np.float64]:
    """KL(histogram cut after a bin || the same in so many levels) for every cut from `levels` bins to all of them.

    With c counts of bins, S sums and F filled bins of levels, o what is beyond the cut, n and I all and the inside:
    KL = (sum c log c - sum S log(S / F) + what o adds to the last bin) / n - log n + log I.
    """
    stops = np.arange(levels, len(counts) + 1)
    edges = -(-np.arange(levels + 1) * stops[:, None] // levels)
    sums = np.diff(_running(counts)[edges])
    means = sums / np.maximum(np.diff(_running(counts > 0)[edges]), 1)
    last, inside, total = counts[stops - 1], _running(counts)[stops], counts.sum()
    beyond = total - inside
    with np.errstate(divide="ignore", invalid="ignore"):
        cut = _running(_log_weighted(counts, counts))[stops - 1] + _log_weighted(last + beyond, last + beyond)
        merged = _log_weighted(sums, means).sum(1) + _log_weighted(beyond, means[:, -1])
        found = (cut - merged) / total - np.log(total) + np.log(inside)
    # what is beyond the cut would count in an empty bin, of which the levels know nothing
    return np.where((inside > 0) & ((last > 0) | (beyond == 0)), found, np.inf)


def _running(numbers: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Sums of the first 0, 1, 2, ... numbers."""
    return np.concatenate([[0.0], np.cumsum(numbers, dtype=np.float64)])


def _log_weighted(weights: npt.NDArray[np.float64], numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """weights * log(numbers), 0 where the weight is."""
    return np.where(weights > 0, weights * np.log(numbers), 0.0)


def _percentile(rows: Rows, share: float, symmetric: bool) -> tuple[Tensor, Tensor]:
    if symmetric:
        high = Rows(rows.values.abs(), rows.valid).quantile(share)
        return -high, high
    ends = rows.quantile(torch.tensor([1 - share, share], dtype=torch.float64))
    return ends[:, :1].clamp(max=0.0), ends[:, 1:].clamp(min=0.0)


def _least_error(rows: Rows, low: Tensor, high: Tensor, represent: Represent, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Both ends are shrunk together, then, where they need not be alike, each alone."""

    def error(low: Tensor, high: Tensor) -> Tensor:
        return (represent(low, high) - rows.values).square().sum(1, keepdim=True)

    least = error(low, high)
    for moves_low, moves_high in [(True, True)] if symmetric else [(True, True), (False, True), (True, False)]:
        start_low, start_high = low, high
        for shrink in SHRINKS:
            trial_low = start_low * shrink if moves_low else start_low
            trial_high = start_high * shrink if moves_high else start_high
            found = error(trial_low, trial_high)
            better = found < least
            least = torch.where(better, found, least)
            low, high = torch.where(better, trial_low, low), torch.where(better, trial_high, high)
    return low, high
