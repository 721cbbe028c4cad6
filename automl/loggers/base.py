"""What a logger is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from automl.loggers.steps import Step


class Logger(Protocol):
    """Takes a run's figures somewhere else. Its calls come from one thread.

    What a run, resumed or not, has on record is given to it from the first step on, each step once: what it holds of
    earlier sessions it replaces or completes.
    """

    name: str

    def log(self, search: str, steps: Sequence[Step], anew: bool) -> None:
        """Take steps of a search, in the order of their numbers but for rewards, which come later; nothing is sent.

        Args:
            search: its name.
            steps: what is new of it.
            anew: whether they are its first, and what was given before is void.
        """

    def flush(self) -> None:
        """Deliver what was taken; whatever it raises is a notice, and it is called again."""

    def close(self, state: str, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        """The run is not driven any more: its state (`automl.run.directory`), figures and files at its end."""
