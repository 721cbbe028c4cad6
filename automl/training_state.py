"""Where an unfinished training stands, in a file: a later one goes on from its last epoch to the same weights."""

import pickle
from pathlib import Path

import torch
from torch import nn

from automl.cache import atomic_path


class TrainingState:
    """The state of one training.

    Args:
        path: of the file; None keeps nothing.
        about: what is trained and how; a file about something else is passed over.
    """

    def __init__(self, path: Path | None, about: str) -> None:
        self._path = path
        self._about = about

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Puts both where they stood; the number of epochs that are done, 0 where nothing fits."""
        if self._path is None or not self._path.is_file():
            return 0
        try:
            found = torch.load(self._path, map_location="cpu", weights_only=True)
            if found["about"] != self._about:
                return 0
            epochs = int(found["epochs"])
            model.load_state_dict(found["model"])
            optimizer.load_state_dict(found["optimizer"])
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError):
            return 0  # damaged: training it again gives the same
        return epochs

    def save(self, epochs: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """So many epochs are done."""
        if self._path is None:
            return
        tensors = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        with atomic_path(self._path) as temporary:
            torch.save({"about": self._about, "epochs": epochs, **tensors}, temporary)

    def forget(self) -> None:
        """The training has ended."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
