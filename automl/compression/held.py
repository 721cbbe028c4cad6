"""Results that are worth keeping, in a bounded number of bytes."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any


class Held:
    """What was computed before, by what it follows from; what was not asked for for longest goes first.

    Args:
        limit: bytes that are held at most.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Any | None:
        """What was put there; None where that was nothing, or went."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Hold a value of so many bytes, unless it is larger than the limit."""
        with self._lock:
            self.size -= self._entries.pop(key, (None, 0))[1]
            if size > self.limit:
                return
            self._entries[key] = value, size
            self.size += size
            while self.size > self.limit:
                self.size -= self._entries.popitem(last=False)[1][1]
