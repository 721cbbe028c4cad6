"""SIGINT and SIGTERM as a wish to stop: noted, and acted upon where the run is consistent."""

import signal
import threading
from types import FrameType
from typing import Self

from automl.errors import RunStoppedError


class StopSignal:
    """Context manager that turns SIGINT and SIGTERM into a flag; a second SIGINT interrupts at once.

    Signals can only be handled in the main thread; elsewhere `request` is the only way to stop.
    """

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned
        self._before.clear()

    @property
    def requested(self) -> bool:
        """Whether the run is to stop."""
        return self._requested.is_set()

    def request(self) -> None:
        """Ask the run to stop."""
        self._requested.set()

    def check(self) -> None:
        """Raise RunStoppedError where the run is to stop."""
        if self.requested:
            raise RunStoppedError("stopped")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.request()
