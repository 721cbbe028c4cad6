"""The thread that reads a run's record on and hands it to the loggers."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from automl.config import Config
from automl.errors import TrimtabError
from automl.loggers.base import Logger
from automl.loggers.steps import Follower
from automl.run.directory import RunDirectory
from automl.run.store import Store

EVERY_S = 2.0
PATIENCE_S = 60.0
"""How long the end of a run waits for its loggers."""


@contextmanager
def logged(directory: RunDirectory, config: Config, say: Callable[[str], None]) -> Iterator[None]:
    """Have the config's loggers follow a run for as long as the block lasts.

    Args:
        directory: of the run.
        config: of the run.
        say: told in a line where a logger fails.
    """
    loggers = list(_loggers(directory.path, config))
    if not loggers:
        yield
        return
    recorder = Recorder(directory, loggers, config.search.lag, say)
    recorder.start()
    try:
        yield
    finally:
        recorder.finish()


def _loggers(run: Path, config: Config) -> Iterator[Logger]:
    if config.loggers.tensorboard:
        from automl.loggers.tensorboard import TensorBoardLogger

        yield TensorBoardLogger(run)
    if config.loggers.mlflow is not None:
        from automl.loggers.mlflow import MlflowLogger

        yield MlflowLogger(run, config, config.loggers.mlflow)


class Recorder:
    """Follows the record of a run.

    A logger that fails is tried again later; what it was given is not given again, and it keeps it.

    Args:
        directory: of the run.
        loggers: what is fed.
        lag: of the searches.
        say: told in a line where a logger fails.
    """

    def __init__(
        self, directory: RunDirectory, loggers: Sequence[Logger], lag: int, say: Callable[[str], None]
    ) -> None:
        self._directory = directory
        self._loggers = loggers
        self._follower = Follower(lag)
        self._say = say
        self._failing: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="loggers", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def finish(self) -> None:
        """Hand over the rest, and say how the run ended; returns after `PATIENCE_S` at the latest."""
        self._over.set()
        self._thread.join(PATIENCE_S)
        if self._thread.is_alive():
            self._say(f"The loggers have not ended within {PATIENCE_S:.0f} s; the record of the run is complete")

    def _work(self) -> None:
        while not self._over.wait(EVERY_S):
            self._read()
            for logger in self._loggers:
                self._attempt(logger, logger.flush)
        self._read()
        try:
            info, summary = self._directory.info(), self._directory.summary()
        except TrimtabError:  # the run directory is gone
            return
        files = [self._directory.best / "policy.json", self._directory.report_file]
        for logger in self._loggers:
            there = [path for path in files if path.is_file()]
            self._attempt(logger, lambda logger=logger, there=there: logger.close(info.state, summary, there))  # type: ignore[misc]

    def _read(self) -> None:
        if not self._directory.store_file.exists():
            return
        try:
            store = Store.read(self._directory.store_file)
        except TrimtabError:  # it is being made at this moment
            return
        try:
            for search, steps, anew in self._follower.news(store):
                for logger in self._loggers:
                    logger.log(search, steps, anew)
        except TrimtabError:  # it is busy: what was not read is read next time
            return
        finally:
            store.close()

    def _attempt(self, logger: Logger, what: Callable[[], None]) -> None:
        try:
            what()
        except Exception as error:  # a server may be gone, a disk full: neither may end a search
            if logger.name not in self._failing:
                self._failing.add(logger.name)
                said = " ".join(str(error).split())[:200]
                self._say(f"{logger.name} fails, and the search goes on without it for now: {said}")
            return
        if logger.name in self._failing:
            self._failing.remove(logger.name)
            self._say(f"{logger.name} has caught up")
