"""TensorBoard's event files: one TensorBoard run a search, in `tensorboard/` of the run directory."""

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from automl.loggers.steps import Step

FOLDER = "tensorboard"


class TensorBoardLogger:
    """Writes the files anew in every session, from the first step on.

    A new file begins with the mark by which TensorBoard drops what it has read of older ones, which are then removed.
    So nothing is missing or stands there twice, wherever the last session was killed.

    Args:
        run: the run directory.
    """

    name = "TensorBoard"

    def __init__(self, run: Path) -> None:
        self._folder = run / FOLDER
        self._writers: dict[str, Any] = {}
        self._waiting: deque[tuple[str, Step]] = deque()

    def log(self, search: str, steps: Sequence[Step], anew: bool) -> None:
        """See `automl.loggers.base.Logger`."""
        if anew:
            self._waiting = deque(each for each in self._waiting if each[0] != search)
            if search in self._writers:
                self._writers.pop(search).close()
        self._waiting.extend((search, step) for step in steps)

    def flush(self) -> None:
        """See `automl.loggers.base.Logger`."""
        while self._waiting:
            search, step = self._waiting[0]
            writer = self._writers.get(search) or self._open(search)
            for key, value in step.values.items():
                writer.add_scalar(key, value, step.number, walltime=step.time)
            self._waiting.popleft()
        for writer in self._writers.values():
            writer.flush()

    def close(self, state: str, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        """See `automl.loggers.base.Logger`."""
        self.flush()
        for writer in self._writers.values():
            writer.close()

    def _open(self, search: str) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        folder = self._folder / search
        older = list(folder.glob("events.out.tfevents.*"))
        writer = self._writers[search] = SummaryWriter(str(folder), purge_step=0)
        for path in older:
            path.unlink(missing_ok=True)
        return writer
