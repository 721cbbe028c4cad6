"""Drives a directory: that of a run, or of what is driven like one. Its state stays true however that ends."""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from automl.config_sections import StorageSection
from automl.errors import RunStoppedError, TrimtabError
from automl.progress import Progress
from automl.run.copying import copied
from automl.run.directory import RunClock, RunDirectory
from automl.run.status import search_overview
from automl.signals import StopSignal


@contextmanager
def driving(
    directory: RunDirectory, progress: Progress, storage: StorageSection | None = None
) -> Iterator[tuple[RunClock, StopSignal]]:
    """Hold a directory while the block lasts, keep its copy up to date, and note how the block ended.

    Args:
        directory: nobody else drives it meanwhile.
        progress: told where a copy failed.
        storage: where the copy is; None keeps none.

    Returns:
        What keeps its state, which the block sets where it ends well; and whether to stop.

    Raises:
        RunStoppedError: the block was told to stop; it can be gone on with.
        TrimtabError: it failed, or another process drives the directory; `error.log` shows what was not foreseen.
    """
    with directory.drive() as clock, copied(directory, storage, clock, progress), StopSignal() as stop:
        try:
            yield clock, stop
        except KeyboardInterrupt:
            clock.set("unfinished", reason="interrupted")
            raise
        except Exception as error:
            if isinstance(error, RunStoppedError) or stop.requested:  # the signal reaches our children, and some fail
                clock.set("unfinished", reason="stopped")
                raise RunStoppedError("stopped") from error
            if isinstance(error, TrimtabError):
                clock.set("failed", reason=str(error))
                raise
            clock.set("failed", reason=f"{type(error).__name__}: {error}")
            directory.error_log.write_text(traceback.format_exc(), encoding="utf-8")
            raise TrimtabError(
                f"unexpected {type(error).__name__}: {error}; {directory.error_log} shows where"
            ) from error


def show_runs(runs: Sequence[RunDirectory], progress: Progress, called: str = "") -> None:
    """Show how far runs are that are driven by processes of their own.

    Args:
        runs: which.
        progress: where.
        called: what a run is here, said before its name.
    """
    for run in runs:
        rows, info = search_overview(run), run.info()
        done, total = (sum(row[key] for row in rows) for key in ("done", "evaluations"))
        progress.update(f"{called} {run.path.name}".strip(), int(done), total, info.stage)
