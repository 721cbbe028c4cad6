"""A table of 2 ** bits values that weights share, found by k-means.

Han et al., "Deep Compression", ICLR 2016: Lloyd's algorithm from equally spaced values, which the paper found to keep
large weights best. It also starts from quantiles, which loses nothing where a set has no more weights than the table
has entries; each set keeps the better result. Nothing is drawn by chance, and no step of Lloyd's raises the error.
"""

import torch
from torch import Tensor

from automl.compression.quantisation.base import Choice, Codec, Side
from automl.compression.quantisation.granularity import Rows
from automl.compression.quantisation.rounding import to_level

STEPS = 50
"""Of Lloyd's algorithm at most; it ends where nothing moves."""


def starts(rows: Rows, entries: int) -> list[Tensor]:
    """Tables to start from, ascending, [sets, entries] each: equally spaced values, and quantiles."""
    share = torch.linspace(0, 1, entries, dtype=rows.values.dtype, device=rows.values.device)
    ends = rows.quantile(torch.tensor([0.0, 1.0]))
    return [ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * share, rows.quantile(share)]


def k_means(rows: Rows, table: Tensor) -> Tensor:
    """Lloyd's algorithm on the valid values of each set: a table [sets, entries] of no more squared error. An entry
    that no value is nearest to stays where it is."""
    for _ in range(STEPS):
        codes = to_level(rows.values, table)
        members = torch.zeros_like(table).scatter_add(1, codes, rows.valid.to(table.dtype))
        sums = torch.zeros_like(table).scatter_add(1, codes, rows.values * rows.valid)
        moved = torch.where(members > 0, sums / members.clamp(min=1), table)
        if torch.equal(moved, table):
            break
        table = moved
    return table


def squared_error(rows: Rows, table: Tensor) -> Tensor:
    """Of the valid values of each set to their nearest entries, [sets, 1]."""
    nearest = table.gather(1, to_level(rows.values, table))
    return ((nearest - rows.values) * rows.valid).square().sum(1, keepdim=True)


def _encode(rows: Rows, bits: int, choice: Choice) -> tuple[Tensor, dict[str, Tensor]]:
    spaced, quantiles = (k_means(rows, start) for start in starts(rows, 1 << bits))
    better = squared_error(rows, spaced) <= squared_error(rows, quantiles)
    table = torch.where(better, spaced, quantiles).float()
    return to_level(rows.values, table, choice.generator), {"codebook": table}


def _decode(codes: Tensor, side: Side, bits: int) -> Tensor:
    return side["codebook"].gather(1, codes)


CODEBOOK = Codec(_encode, _decode)
