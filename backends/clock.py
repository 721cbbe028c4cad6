"""Reading the clock on a machine that others use as well, and how fast the processor runs right now.

The processor's own clock follows heat, power and what neighbours do: by a quarter within the hour on a shared machine,
and everything that runs from registers and caches follows it alike. A latency of an hour ago can be compared with one
of now only where the pace of both is known.
"""

import hashlib
import time

_BLOCK = bytes(2000)  # below 2048 bytes hashlib keeps the interpreter's lock, and nobody else gets in between
_BLOCKS = 64
_WARM_UP = 32
"""Blocks until code and data are back in the cache, and predictions right, whatever ran before."""


def pace() -> float:
    """Seconds of a fixed piece of arithmetic, about 1e-6; reading it takes a tenth of a millisecond.

    Only ratios of two readings on one machine mean anything, and only with one version of Python's OpenSSL.
    """
    for _ in range(_WARM_UP):
        hashlib.sha256(_BLOCK)
    start = reading()
    for _ in range(_BLOCKS):
        hashlib.sha256(_BLOCK)
    return worked(start, reading()) / _BLOCKS


def reading() -> tuple[float, float]:
    """Seconds of the clock on the wall, and those that this process has had a processor for."""
    return time.perf_counter(), time.process_time()


def worked(start: tuple[float, float], end: tuple[float, float]) -> float:
    """Seconds between two readings, without those in which a neighbour had taken the processor away.

    With several threads at work the processors' seconds add up to more than those on the wall, which count then. Not
    for work that is done elsewhere, as on a GPU, while this process sleeps.
    """
    return min(end[0] - start[0], end[1] - start[1])


def on_the_wall(start: tuple[float, float], end: tuple[float, float]) -> float:
    """Seconds between two readings, whoever had the processor: for work that is done on another device."""
    return end[0] - start[0]
