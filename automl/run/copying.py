"""Keeps a run's copy on shared storage up to date while the run is driven, beside it and without stopping it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from automl.config_sections import StorageSection
from automl.errors import TrimtabError
from automl.progress import Progress
from automl.run.copies import Copy, owner_of
from automl.run.directory import RunClock, RunDirectory


@contextmanager
def copied(
    directory: RunDirectory, storage: StorageSection | None, clock: RunClock, progress: Progress
) -> Iterator[None]:
    """Copy a run at the end of every stage and every few minutes while the block lasts, and once more when it ends.

    Args:
        directory: of the run.
        storage: where to; None copies nothing.
        clock: of the run, which knows when a stage ends.
        progress: told where a copy failed; the next may succeed.

    Raises:
        InputError: no such storage, or the copy there is another run's.
        TrimtabError: the last copy failed.
    """
    if storage is None:
        yield
        return
    copy, owner = Copy.within(storage.uri, directory.path.resolve().name), owner_of(directory)
    copy.check_owner(owner)
    wanted, ended = threading.Event(), threading.Event()

    def keep() -> None:
        while not ended.is_set():
            wanted.wait(storage.every_s)
            wanted.clear()
            if ended.is_set():
                return
            try:
                copy.write(directory.path, owner)
            except TrimtabError as error:
                progress.say(f"{error}; the run goes on")

    thread = threading.Thread(target=keep, name="copies", daemon=True)
    clock.on_stage = wanted.set
    thread.start()

    def end() -> None:
        ended.set()
        wanted.set()
        thread.join()
        clock.on_stage = None
        copy.write(directory.path, owner)

    try:
        yield
    except BaseException:
        with suppress(TrimtabError):  # what ended the run is what counts
            end()
        raise
    end()
