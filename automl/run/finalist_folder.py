"""What a run keeps of a network that it compares in the end: where its training stands, then weights and figures."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automl.export.manifest import WEIGHTS
from automl.run.directory import write_atomically, write_json


@dataclass(frozen=True)
class Trained:
    """A network that is finished.

    Attributes:
        weights: content of its file.
        result: what `result.json` is to hold.
    """

    weights: bytes
    result: Mapping[str, Any]


class FinalistFolder:
    """The folder of a finalist; whoever trains it may be on another machine.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state = path / "training.pt"
        self._progress = path / "progress.json"

    def unfinished(self) -> bytes | None:
        """Where its training stands, as `automl.training_state.TrainingState` has it; None where it has not begun."""
        with suppress(OSError):
            return self._state.read_bytes()
        return None

    def epoch(self, state: bytes, epoch: int, epochs: int) -> None:
        """So many of all epochs are done."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self._state, state)
        temporary = self._progress.with_name(f".{self._progress.name}")
        temporary.write_text(json.dumps({"epoch": epoch, "epochs": epochs}), encoding="utf-8")
        temporary.replace(self._progress)

    def finish(self, trained: Trained) -> None:
        """The network is finished; its result is written last."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / WEIGHTS, trained.weights)
        write_json(self.path / "result.json", trained.result)
        self._state.unlink(missing_ok=True)
        self._progress.unlink(missing_ok=True)
