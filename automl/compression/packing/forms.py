"""The index of a sparse weight tensor, written in each form: which atoms are left of the grid [rows, columns].

Both sides know rows, columns and the number of atoms that are left (`search_spaces.sparsity`), so no form stores them.
A new form is an entry of `FORMS` and one of `search_spaces.sparsity.sizes`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from automl.compression.packing.bits import BitReader, BitWriter, IntArray
from search_spaces.errors import InputError
from search_spaces.sparsity import rice_parameter, unary_bits, width_of

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Form:
    """How an index is written and read.

    Attributes:
        write: (which atoms are left [rows, columns], writer).
        read: (reader, rows, columns, atoms left) -> the places of the atoms that are left, row by row: ascending in
            [0, rows * columns), unless the buffer is damaged.
    """

    write: Callable[[BoolArray, BitWriter], None]
    read: Callable[[BitReader, int, int, int], IntArray]


def read_index(form: str, reader: BitReader, rows: int, columns: int, left: int) -> BoolArray:
    """Which atoms are left, [rows, columns].

    Raises:
        InputError: the buffer holds no such index.
    """
    places = FORMS[form].read(reader, rows, columns, left)
    ascending = np.diff(places, prepend=-1) > 0
    if len(places) != left or not ascending.all() or places.max(initial=0) >= rows * columns:
        raise InputError(f"packed weights hold no {form!r} index of {left} among {rows}x{columns}; they are damaged")
    found = np.zeros(rows * columns, np.bool_)
    found[places] = True
    return found.reshape(rows, columns)


def _write_n_m(kept: BoolArray, writer: BitWriter) -> None:
    """Of each window the places that stay, as sparse tensor cores read them (Mishra et al., arXiv 2104.08378, 2021)."""
    writer.add(np.nonzero(kept)[1], width_of(kept.shape[1] - 1))


def _read_n_m(reader: BitReader, rows: int, columns: int, left: int) -> IntArray:
    return np.repeat(np.arange(rows) * columns, left // rows) + reader.take(left, width_of(columns - 1))


def _write_bitmap(kept: BoolArray, writer: BitWriter) -> None:
    """A bit for each atom."""
    writer.add(kept, 1)


def _read_bitmap(reader: BitReader, rows: int, columns: int, left: int) -> IntArray:
    return np.flatnonzero(reader.take(rows * columns, 1))


def _write_run_length(kept: BoolArray, writer: BitWriter) -> None:
    """The low bits of all runs, then their unary parts: zeros up to a one (see `rice_parameter`).

    The unary parts are filled up to the bits that suffice for any, so that the size does not depend on the mask.
    """
    left = int(kept.sum())
    zero = kept.size - left
    low = rice_parameter(left, zero)
    runs = np.diff(np.flatnonzero(kept), prepend=-1) - 1
    writer.add(runs & ((1 << low) - 1), low)
    unary = np.zeros(unary_bits(left, zero, low), np.int64)
    unary[np.cumsum((runs >> low) + 1) - 1] = 1
    writer.add(unary, 1)


def _read_run_length(reader: BitReader, rows: int, columns: int, left: int) -> IntArray:
    zero = rows * columns - left
    low = rice_parameter(left, zero)
    rest = reader.take(left, low)
    ones = np.flatnonzero(reader.take(unary_bits(left, zero, low), 1))
    if len(ones) != left:
        return ones
    runs = (np.diff(ones, prepend=-1) - 1 << low) + rest
    return np.cumsum(runs + 1) - 1


def _write_csr(kept: BoolArray, writer: BitWriter) -> None:
    """Compressed sparse rows: where each row begins among the atoms, and where the last ends; then their columns."""
    pointers = np.cumsum([0, *kept.sum(1)])
    writer.add(pointers, width_of(int(pointers[-1])))
    writer.add(np.nonzero(kept)[1], width_of(kept.shape[1] - 1))


def _read_csr(reader: BitReader, rows: int, columns: int, left: int) -> IntArray:
    counts = np.diff(reader.take(rows + 1, width_of(left)))
    if (counts < 0).any() or counts.sum() != left:
        return counts[:0]
    return np.repeat(np.arange(rows) * columns, counts) + reader.take(left, width_of(columns - 1))


FORMS: dict[str, Form] = {
    "n:m": Form(_write_n_m, _read_n_m),
    "bitmap": Form(_write_bitmap, _read_bitmap),
    "run_length": Form(_write_run_length, _read_run_length),
    "csr": Form(_write_csr, _read_csr),
}
"""By name; "dense" has no index."""
