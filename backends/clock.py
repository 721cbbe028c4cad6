"""How fast the processor runs right now.

Its clock follows heat, power and what neighbours do: by a quarter within the hour on a shared machine, and everything
that runs from registers and caches follows it alike. A latency of an hour ago can be compared with one of now only
where the pace of both is known.
"""

import hashlib
import time

_BLOCK = bytes(2000)  # below 2048 bytes hashlib keeps the interpreter's lock, and nobody else gets in between
_BLOCKS = 64


def pace() -> float:
    """Seconds of a fixed piece of arithmetic, about 1e-6; reading it takes a tenth of a millisecond.

    Only ratios of two readings on one machine mean anything, and only with one version of Python's OpenSSL.
    """
    start = time.perf_counter()
    for _ in range(_BLOCKS):
        hashlib.sha256(_BLOCK)
    return (time.perf_counter() - start) / _BLOCKS
