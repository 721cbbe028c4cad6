"""Who works on a run: one process at a time, known to the others, and replaced where it died without letting go.

The operating system's lock decides. It goes with the process that holds it, except where the machine that it ran on
died and a file server still believes it. For that case the holder says who it is, and counts up every few seconds; it
is `take_over` that watches whether it still does, by the watcher's own steady clock, and then breaks the lock.
"""

import errno
import json
import os
import secrets
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from automl.errors import TrimtabError

BEAT_S = 5.0
SILENCE_S = 30.0
"""That a holder must give no sign of life for before it is taken for dead."""

_WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
"""What file systems answer that have no locks; `FileLock` itself knows ENOSYS."""


@dataclass(frozen=True)
class Holder:
    """A process that works on a run.

    Attributes:
        pid, host: of the process.
        since: UTC.
        token: tells one that holds the lock from all others that did.
    """

    pid: int
    host: str
    since: str
    token: str

    @classmethod
    def read(cls, path: Path) -> "Holder | None":
        """Who a file says; None where it says nothing."""
        try:
            values = json.loads(path.read_bytes())
            return cls(int(values["pid"]), str(values["host"]), str(values["since"]), str(values["token"]))
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return None

    @property
    def here(self) -> bool:
        """Whether it is a process of this machine."""
        return self.host == socket.gethostname()

    @property
    def text(self) -> str:
        """For people."""
        where = "" if self.here else f" on {self.host!r}"
        return f"process {self.pid}{where}, since {self.since}"


class RunLock:
    """The lock of a directory.

    Args:
        directory: of a run, or what is driven like one.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / ".lock"
        self._holder_file = directory / ".driver.json"
        self._beat_file = directory / ".driver.beat"
        self._own: Holder | None = None
        self._lost = False

    @property
    def holder(self) -> Holder | None:
        """Who holds it; None where nobody does, or who does is not known."""
        return Holder.read(self._holder_file) if self.held() else None

    def held(self) -> bool:
        """Whether some process holds the lock at this moment."""
        if not self.file.exists() and not _soft(self.file).exists():
            return False
        try:
            _acquired(self.file, 0.0).release()
        except Timeout:
            return True
        except OSError:  # what cannot be written to cannot be driven either
            return False
        return False

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the lock.

        Raises:
            TrimtabError: another process holds it, or the directory cannot be written.
        """
        try:
            lock = _acquired(self.file, 1.0)  # `held` of another process may have it for a moment
        except Timeout:
            raise TrimtabError(self._refusal()) from None
        except OSError as error:
            raise TrimtabError(f"{str(self.directory)!r} cannot be written: {error.strerror}") from None
        over = threading.Event()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            self._own = Holder(os.getpid(), socket.gethostname(), now, secrets.token_hex(8))
            self._write_holder(self._own)
            beating = threading.Thread(target=self._beat, args=(self._own, over), daemon=True)
            beating.start()
            try:
                yield
            finally:
                over.set()
                beating.join()
                if not self._lost:
                    for file in (self._holder_file, self._beat_file):
                        file.unlink(missing_ok=True)
        finally:
            self._own = None
            lock.release()

    def check(self) -> None:
        """TrimtabError where another process took over, while this one was believed dead."""
        if self._own is None:
            return
        other = Holder.read(self._holder_file)
        if self._lost or other is None or other.token != self._own.token:
            self._lost = True
            by = "" if other is None else f" by {other.text}"
            raise TrimtabError(f"{str(self.directory)!r} was taken over{by}; this process leaves it alone")

    def _write_holder(self, holder: Holder) -> None:
        temporary = self._holder_file.with_name(f".driver.{holder.token}.tmp")
        temporary.write_text(json.dumps(asdict(holder)) + "\n", encoding="utf-8")
        temporary.replace(self._holder_file)

    def _beat(self, own: Holder, over: threading.Event) -> None:
        """Give signs of life until it is over, or another process has taken over."""
        count = 0
        while True:
            found = Holder.read(self._holder_file)
            if found is None or found.token != own.token:
                self._lost = not over.is_set()
                return
            with suppress(OSError):  # a full disk is for those to report who have something to say
                self._beat_file.write_text(f"{own.token} {count}", encoding="utf-8")
            count += 1
            if over.wait(BEAT_S):
                return

    def _refusal(self) -> str:
        run, holder = self.directory, Holder.read(self._holder_file)
        whose = "another process" if holder is None else holder.text
        said = f"{str(run)!r} is driven by {whose}; stop that one, or look on with `trimtab status {run}`"
        if holder is None or holder.here:
            return said
        return f"{said}; if {holder.host!r} is gone, `trimtab resume {run} --take-over` goes on here"

    def _signs(self) -> tuple[Holder | None, bytes]:
        """What changes as long as the holder lives."""
        try:
            return Holder.read(self._holder_file), self._beat_file.read_bytes()
        except OSError:
            return Holder.read(self._holder_file), b""

    def _break(self, holder: Holder) -> None:
        """Free the lock of a holder that is dead, unless somebody else holds it by now."""
        try:
            guard = _acquired(self.directory / ".take-over", SILENCE_S)
        except Timeout:
            raise TrimtabError(f"{str(self.directory)!r} is being taken over by another process") from None
        try:
            if Holder.read(self._holder_file) != holder or not self.held():
                return  # another process was quicker
            self._holder_file.unlink(missing_ok=True)  # first: by it the old holder finds out, should it wake up
            self._beat_file.unlink(missing_ok=True)
            stores = [] if holder.here else self.directory.glob(".*.sqlite.lock")
            for file in (self.file, _soft(self.file), *stores):  # who waits for the old one sees that it is gone
                file.unlink(missing_ok=True)
        finally:
            guard.release()


def locks_of(directory: Path) -> list[RunLock]:
    """The lock of a directory, and those of runs in it: a sweep's cells, a supernet's devices."""
    below = [*directory.glob("*/.driver.json"), *directory.glob("devices/*/.driver.json")]
    return [RunLock(directory), *(RunLock(each.parent) for each in sorted(below))]


def take_over(locks: Sequence[RunLock]) -> None:
    """Free locks whose holders died without letting go, as where a file server did not hear of a machine's death.

    Watches them for `SILENCE_S`; those that nobody holds are passed over. Who drives then, the locks decide.

    Raises:
        TrimtabError: a holder is alive, or does not say who it is.
    """
    watched: dict[RunLock, tuple[Holder, bytes]] = {}
    for lock in locks:
        holder, beat = lock._signs()
        if not lock.held():
            continue
        if holder is None:
            raise TrimtabError(f"{str(lock.directory)!r} is driven by a process that does not say who it is; stop it")
        if holder.here and _alive(holder.pid):
            raise TrimtabError(f"{str(lock.directory)!r} is driven by {holder.text}, which is alive; stop that one")
        watched[lock] = holder, beat
    end = time.monotonic() + SILENCE_S
    while watched and time.monotonic() < end:
        time.sleep(min(1.0, SILENCE_S / 5))
        for lock, before in watched.items():
            if lock._signs() != before and lock.held():
                raise TrimtabError(f"{str(lock.directory)!r} is driven, its driver gives signs of life; stop that one")
    for lock, (holder, _) in watched.items():
        lock._break(holder)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _soft(file: Path) -> Path:
    """Exists while a lock is held, where the file system has no other locks."""
    return file.with_name(f"{file.name}.soft")


def _acquired(file: Path, timeout_s: float) -> BaseFileLock:
    """A lock, acquired: of the operating system, else a file that exists as long.

    Raises:
        Timeout: another process holds it.
        OSError: the directory cannot be written.
    """
    lock: BaseFileLock = FileLock(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no flock and a file stands in for it
        try:
            lock.acquire(timeout=timeout_s)
        except Timeout:
            raise
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            lock = SoftFileLock(_soft(file))
            lock.acquire(timeout=timeout_s)
    return lock
