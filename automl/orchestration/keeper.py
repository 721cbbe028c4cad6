"""Keeps what is told of finalists that train anywhere.

Processes of their own import this: neither torch is loaded for it nor Ray Tune.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

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


@dataclass(frozen=True)
class RemoteFolder:
    """A finalist's folder, as a process on another node tells it of epochs.

    Attributes:
        keeper: handle of the `Keeper`.
        name: of the finalist.
    """

    keeper: Any
    name: str

    def epoch(self, state: bytes, epoch: int, epochs: int) -> None:
        """See `FinalistFolder.epoch`; returns when it is on disk."""
        ray.get(self.keeper.epoch.remote(self.name, state, epoch, epochs))
