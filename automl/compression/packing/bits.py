"""Whole numbers of a few bits each, one after the other in a buffer.

Bit i of the buffer is bit i % 8 of byte i // 8, the least significant bit of a number comes first, and the last byte is
filled up with zeros.
"""

import numpy as np
import numpy.typing as npt

from search_spaces.errors import InputError

IntArray = npt.NDArray[np.int64]
MOST_WIDTH = 32
"""Bits of the widest number."""


class BitWriter:
    """Appends numbers; `to_bytes` gives the buffer."""

    def __init__(self) -> None:
        self._parts: list[npt.NDArray[np.uint8]] = []

    def add(self, values: npt.ArrayLike, width: int) -> None:
        """Append whole numbers of so many bits each; of a negative one its two's complement.

        Args:
            values: of any shape, in C order; each fits into its bits.
            width: bits of each, 0 to 32.
        """
        octets = np.ascontiguousarray(values, dtype="<i8").reshape(-1, 1).view(np.uint8)[:, : MOST_WIDTH // 8]
        self._parts.append(np.unpackbits(octets, axis=1, bitorder="little")[:, :width].ravel())

    def to_bytes(self) -> bytes:
        """All that was added."""
        return np.packbits(np.concatenate(self._parts), bitorder="little").tobytes() if self._parts else b""


class BitReader:
    """Takes numbers off a buffer in the order they were added."""

    def __init__(self, buffer: bytes) -> None:
        self._bits = np.unpackbits(np.frombuffer(buffer, np.uint8), bitorder="little")
        self._place = 0

    def take(self, count: int, width: int, signed: bool = False) -> IntArray:
        """The next numbers of so many bits each: int64 [count].

        Args:
            count: how many.
            width: bits of each, 0 to 32.
            signed: whether they are two's complements.

        Raises:
            InputError: the buffer ends before.
        """
        end = self._place + count * width
        if end > len(self._bits):
            raise InputError(f"packed weights end after {len(self._bits)} bits, {end} are needed; is it another layer?")
        bits = np.zeros((count, MOST_WIDTH), np.uint8)
        bits[:, :width] = self._bits[self._place : end].reshape(count, width)
        if signed:
            bits[:, width:] = bits[:, width - 1 : width]
        self._place = end
        octets = np.packbits(bits, axis=1, bitorder="little")
        return octets.view("<i4" if signed else "<u4").ravel().astype(np.int64)


def patterns_of(values: npt.NDArray[np.generic], what: str) -> IntArray:
    """The 32 bits of float32 numbers as whole numbers, of the same shape.

    Args:
        values: float32.
        what: they are, for the message.

    Raises:
        InputError: they are not float32.
    """
    if values.dtype != np.float32:
        raise InputError(f"{what} are float32 where they are packed, got {values.dtype}")
    return np.ascontiguousarray(values).view(np.uint32).astype(np.int64)


def floats_of(patterns: IntArray) -> npt.NDArray[np.float32]:
    """The inverse of `patterns_of`."""
    return patterns.astype(np.uint32).view(np.float32)
