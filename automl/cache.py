"""The one place outside a run directory that Trimtab writes to, and how it writes: atomically, never half a file."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from search_spaces.errors import TrimtabError

WAIT_S = 1.0
"""Between two looks at whether to go on waiting for another process."""


def cache_dir(*parts: str) -> Path:
    """A directory of the cache, made if absent: `$TRIMTAB_CACHE` or `~/.cache/trimtab`, then `parts`.

    Raises:
        TrimtabError: it cannot be made.
    """
    root = os.environ.get("TRIMTAB_CACHE")
    directory = (Path(root) if root else Path.home() / ".cache" / "trimtab").joinpath(*parts)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrimtabError(f"cannot make the cache {directory} ({error.strerror}); set TRIMTAB_CACHE") from error
    return directory


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` to write to; it takes the target's place when the block ends without error.

    Two processes that write the same target both succeed, and readers see one whole file or the other.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp's 0600 would hide a shared cache from its other users
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def one_maker(target: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds the lock of whoever makes an entry, so that processes which miss the same one do not all make it.

    Where files cannot be locked all of them do, and each whole entry replaces the one before.

    Args:
        target: the entry; whether it is there is to be looked at inside.
        waiting: called every second while another process makes it; may raise.
    """
    file = target.with_name(f".{target.name}.lock")
    lock = FileLock(file)
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(lock.acquire(timeout=WAIT_S))
                stack.callback(file.unlink, missing_ok=True)  # those who wait for it open it anew
                break
            except Timeout:
                waiting()
            except (OSError, NotImplementedError):
                break
        yield


def digest_of(recipe: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of what JSON can hold, whatever the order of its keys."""
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
