"""Bits of numbers that are stored without their zeros: mean bits of each number, index included."""

from typing import Literal

import numpy as np
import numpy.typing as npt

from backends.accelerators.workloads import FloatArray

Format = Literal["dense", "bitmap", "run_length", "rows", "windows"]
POINTER_BITS = 16
"""Of the place where a row or column starts (EIE: Han et al., ISCA 2016)."""
LONGEST_RUNS = 256
"""Lengths of a run of zeros, as the index counts them, that `entries` tells apart."""


def entries(size: npt.ArrayLike, density: npt.ArrayLike, index_bits: int) -> FloatArray:
    """Entries of a run of `size` numbers coded by run lengths: nonzeros, and zeros that stand for runs too long.

    A run length has `index_bits`; after r = 2^index_bits zeros stands one that is stored. A nonzero at place i, which
    comes with the chance d, has k such zeros before it with the chance (1 - d)^(r k) where i >= r k, so that there are

        d (size + sum over k >= 1 of (1 - d)^(r k) max(size - r k, 0))

    entries; zeros at the end are not stored. Of more than `LONGEST_RUNS` such runs the end no longer counts.

    Args:
        size: of the run, [N] or a number.
        density: share that is not zero.
        index_bits: of a run length.
    """
    length, chance = np.asarray(size, dtype=np.float64), np.asarray(density, dtype=np.float64)
    run = float(1 << index_bits)
    counted = np.minimum(length, LONGEST_RUNS * run)
    runs = np.arange(1, int(counted.max(initial=0) // run) + 1)
    chances = (1 - chance[..., None]) ** (run * runs)
    padded = (chances * np.maximum(counted[..., None] - run * runs, 0)).sum(axis=-1)
    return np.asarray(chance * (counted + padded) * (length / counted))


def stored_bits(
    form: Format, bits: npt.ArrayLike, density: npt.ArrayLike, size: npt.ArrayLike, index_bits: int, shared: int = 1
) -> FloatArray:
    """Mean bits of a number; where the dense form is smaller, that is stored.

    Args:
        form: "dense"; "bitmap", one more bit a number; "run_length" of `index_bits` before each; "rows", a place of
            as many bits as `size` needs, and a pointer for each run (CSR); "windows", a place in a window of
            2^index_bits (N:M).
        bits: of a number.
        density: share that is not zero.
        size: numbers of a run: of a row or a column, or of a lane's part of it.
        index_bits: of an index entry.
        shared: numbers that share an index entry.
    """
    width, chance, length = (np.asarray(each, dtype=np.float64) for each in (bits, density, size))
    if form == "dense":
        return np.asarray(np.broadcast_to(width, np.broadcast_shapes(width.shape, chance.shape)))
    if form == "bitmap":
        coded = chance * width + 1.0 / shared
    elif form == "run_length":
        coded = entries(length, chance, index_bits) / length * (width + index_bits / shared)
    elif form == "rows":
        place = np.ceil(np.log2(np.maximum(length, 2)))
        coded = chance * (width + place / shared) + POINTER_BITS / length
    else:
        coded = chance * (width + index_bits / shared)
    return np.asarray(np.minimum(coded, width))
