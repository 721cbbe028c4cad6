"""Keeps what is told of finalists that train anywhere. A process of its own, so torch is not loaded for it."""

from pathlib import Path

from automl.run.finalist_folder import FinalistFolder


class Keeper:
    """An actor on the driver's node, to which all that train finalists tell every epoch.

    Args:
        finalists: directory of their folders.
    """

    def __init__(self, finalists: Path) -> None:
        self._finalists = finalists

    def epoch(self, name: str, state: bytes, epoch: int, epochs: int) -> None:
        """See `FinalistFolder.epoch`."""
        FinalistFolder(self._finalists / name).epoch(state, epoch, epochs)
