"""A table of 2 ** bits values that weights share, found by k-means.

Han et al., "Deep Compression", ICLR 2016: Lloyd's algorithm from equally spaced values, which the paper found to keep
large weights best. It also starts from quantiles, which loses nothing where a set has no more weights than the table
has entries; each set keeps the best table, those it started from included. Nothing is drawn by chance.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from automl.compression.quantisation.base import Choice, Codec, Side
from automl.compression.quantisation.granularity import Rows
from automl.compression.quantisation.rounding import to_level

STEPS = 100
"""Of Lloyd's algorithm at most; it ends where nothing moves."""


def starts(rows: Rows, entries: int) -> list[Tensor]:
    """Tables to start from, ascending, [sets, entries] each: equally spaced values, and quantiles."""
    share = torch.linspace(0, 1, entries, dtype=rows.values.dtype, device=rows.values.device)
    ends = rows.quantile(torch.tensor([0.0, 1.0]))
    return [ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * share, rows.quantile(share)]


def k_means(rows: Rows, table: Tensor) -> Tensor:
    """Lloyd's algorithm on the valid values of each set: a table [sets, entries] of no more squared error. An entry
    that no value is nearest to stays where it is.

    Values are sorted once; the members of an entry are then neighbours, and a step costs no pass over the values.
    """
    ordered = rows.values.masked_fill(~rows.valid, torch.inf).sort(dim=1).values
    running = F.pad(ordered.masked_fill(ordered == torch.inf, 0.0).cumsum(1), (1, 0))
    ends = F.pad(rows.valid.sum(1, keepdim=True), (1, 0))
    for _ in range(STEPS):
        between = torch.searchsorted(ordered, (table[:, 1:] + table[:, :-1]) / 2)
        edges = torch.cat([ends[:, :1], between, ends[:, 1:]], dim=1)
        members = edges.diff(dim=1)
        moved = torch.where(members > 0, running.gather(1, edges).diff(dim=1) / members.clamp(min=1), table)
        if torch.equal(moved, table):
            break
        table = moved
    return table


def squared_error(rows: Rows, table: Tensor) -> Tensor:
    """Of the valid values of each set to their nearest entries, [sets, 1]."""
    nearest = table.gather(1, to_level(rows.values, table))
    return ((nearest - rows.values) * rows.valid).square().sum(1, keepdim=True)


def _encode(rows: Rows, bits: int, choice: Choice) -> tuple[Tensor, dict[str, Tensor]]:
    found = starts(rows, 1 << bits)
    tables = torch.stack([*(k_means(rows, start) for start in found), *found])
    best = torch.stack([squared_error(rows, each) for each in tables]).argmin(0)
    table = tables.gather(0, best[None].expand(1, -1, tables.shape[2]))[0].float()
    return to_level(rows.values, table, choice.generator), {"codebook": table}


def _decode(codes: Tensor, side: Side, bits: int) -> Tensor:
    return side["codebook"].gather(1, codes)


CODEBOOK = Codec(_encode, _decode)
