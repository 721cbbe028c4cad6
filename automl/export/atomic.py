"""A directory that appears all at once: written beside its place, synced, renamed."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from automl.export.manifest import MANIFEST
from automl.run.directory import sync_directory
from search_spaces.errors import InputError


@contextmanager
def appearing_at_once(directory: Path) -> Iterator[Path]:
    """A new folder beside the target, renamed to it when the block ends well, removed when it does not."""
    if not _replaceable(directory):
        raise InputError(f"{str(directory)!r} holds something else than an export; give a new directory")
    directory.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".new", dir=directory.parent))
    try:
        folder.chmod(0o755)
        yield folder
        for path in folder.iterdir():
            path.chmod(0o644)  # some writers make theirs private
        for path in (*folder.iterdir(), folder):
            sync_directory(path)
        _swap(folder, directory)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replaceable(directory: Path) -> bool:
    """Whether nothing stands there, or nothing but an export."""
    if not directory.is_dir():
        return not directory.exists()
    return (directory / MANIFEST).exists() or not any(directory.iterdir())


def _swap(folder: Path, directory: Path) -> None:
    """Put the folder in the place of the directory; the one that stood there is gone when this returns."""
    if directory.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".old", dir=directory.parent))
        directory.rename(old)  # onto an empty directory: atomic
        folder.rename(directory)
        sync_directory(directory.parent)
        shutil.rmtree(old, ignore_errors=True)
    else:
        folder.rename(directory)
        sync_directory(directory.parent)
