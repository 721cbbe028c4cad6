"""Where an unfinished training stands, in a file: a later one goes on from its last epoch to the same weights."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from automl.cache import atomic_path

_DAMAGED = (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError, pickle.UnpicklingError)


class TrainingState:
    """The state of one training.

    Args:
        path: of the file; None keeps nothing.
        about: what is trained and how; a file about something else is passed over.

    Attributes:
        path, about: see above.
        notes: kept with the state, as JSON has them.
    """

    def __init__(self, path: Path | None, about: str) -> None:
        self.path = path
        self.about = about
        self.notes: list[dict[str, Any]] = []

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Puts both where they stood; the number of epochs that are done, 0 where nothing fits."""
        if self.path is None or not self.path.is_file():
            return 0
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
            if found["about"] != self.about:
                return 0
            epochs, notes = int(found["epochs"]), list(found["notes"])
            _check(found["model"], found["optimizer"], model, optimizer)
            model.load_state_dict(found["model"])
            optimizer.load_state_dict(found["optimizer"])
        except _DAMAGED:
            return 0  # training it again gives the same
        self.notes = notes
        return epochs

    def save(self, epochs: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """So many epochs are done."""
        if self.path is None:
            return
        tensors = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        with atomic_path(self.path) as temporary:
            torch.save({"about": self.about, "epochs": epochs, "notes": self.notes, **tensors}, temporary)

    def forget(self) -> None:
        """The training has ended."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _check(tensors: Any, state: Any, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """ValueError, or whatever comes of reading it, where a state does not fit: torch loads what fits before it finds
    out, and does not look at an optimiser's tensors."""
    expected = model.state_dict()
    groups = [[*group["params"]] for group in optimizer.param_groups]
    parameters = [parameter for group in groups for parameter in group]
    fits = (
        tensors.keys() == expected.keys()
        and all(tensors[name].shape == tensor.shape for name, tensor in expected.items())
        and [len(group["params"]) for group in state["param_groups"]] == [len(group) for group in groups]
        and all(
            not isinstance(value, torch.Tensor) or value.ndim == 0 or value.shape == parameters[index].shape
            for index, values in state["state"].items()
            for value in values.values()
        )
    )
    if not fits:
        raise ValueError("of another training")
