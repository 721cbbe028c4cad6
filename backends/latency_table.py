"""Latencies of operators, measured once per device and kept: one SQLite file that runs and processes share.

An entry is on disk when `publish` returns, and never changes: of two processes that measured the same operator the
first to publish wins, and both go on with its value. Each row carries a checksum over all that it says and the device
it was measured on, and a row that does not verify is never used: a damaged file is kept aside, the rows in it that
verify are carried into a fresh one, and the rest is measured again.

A table is one plain file while nobody publishes (a rollback journal, no write-ahead log), so it can be copied to
another machine of the same device. It must lie on a local disk: SQLite's locks do not hold on NFS.
"""

import itertools
import logging
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Self, TypeVar

from backends.latency_entries import FORMAT, DeviceKey, Entry, device_row, entry_row, parse_device, parse_entry, salvage
from backends.lease import cache_root, file_lock
from search_spaces.errors import InputError, TrimtabError
from search_spaces.versions import require_version

__all__ = ["DeviceKey", "Entry", "LatencyTable", "default_table_path"]

BUSY_S = 30.0
"""How long a process waits for another's transaction; one takes milliseconds."""

_PAGE_BYTES = 16384  # a row below this size lies in one piece, where salvaging finds it
_SCHEMA = (
    "CREATE TABLE device (row TEXT NOT NULL)",
    "CREATE TABLE entries (id INTEGER PRIMARY KEY, row TEXT NOT NULL)",
)
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR}
"""SQLite's codes where a file is not as it was written; SQLITE_ERROR: our statements do not fit its tables."""

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


def default_table_path(device: DeviceKey) -> Path:
    """Where the device's table lies in the cache (`$TRIMTAB_CACHE` or `~/.cache/trimtab`); nothing is made."""
    return cache_root() / "latency" / f"{device.engine}-{device.digest}.sqlite"


class LatencyTable:
    """The latencies measured on one device. Threads take turns with it; a forked child opens its own.

    Args:
        path: the SQLite file, made where there is none, with its folders.
        device: what the entries were, and will be, measured on.

    Attributes:
        pace_s: the processor's pace at the first entry with one. All entries are given as they would have been measured
            at that, since a processor may run a quarter faster or slower from one hour to the next. 0 until known.
        notices: a line for each time that the file was found damaged and was mended; logged as warnings, too.

    Raises:
        InputError: the file holds another device's latencies, or belongs to another program.
        TrimtabError: it can be neither opened nor mended.
    """

    def __init__(self, path: Path, device: DeviceKey) -> None:
        self.path = path
        self.device = device
        self.notices: list[str] = []
        self.pace_s = 0.0
        self._known: dict[str, Entry] = {}
        self._last = 0  # id of the last row read
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None  # the one that the connection is to, or was
        self._attached(self._read_new)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def get(self, texts: Iterable[str]) -> dict[str, Entry]:
        """The entries of those recipes that have one, be it that another process has published it just now."""
        wanted = list(texts)
        if not all(text in self._known for text in wanted):
            self._attached(self._read_new)
        return {text: self._known[text] for text in wanted if text in self._known}

    def entries(self) -> dict[str, Entry]:
        """Every entry by its recipe, in the order of publication."""
        self._attached(self._read_new)
        return dict(self._known)

    def publish(self, text: str, entry: Entry) -> Entry:
        """Adds an entry unless the recipe has one, and returns the one that stands; it is on disk then.

        Raises:
            TrimtabError: the disk is full or the file cannot be written; what was published stands.
        """
        self._add({text: entry})
        return self._known[text]

    def merge(self, path: Path) -> int:
        """Adds what another table of the same device knows and this one does not; returns how many entries that were.

        Raises:
            InputError: the other file is damaged, or no table of this device.
            TrimtabError: this table cannot be written; nothing was added then.
        """
        if not path.is_file():
            raise InputError(f"there is no latency table {path} to merge")
        try:
            with _errors_explained(path), closing(_connect(path, "ro")) as connection:
                _check(connection, self.device, path)
                found = {text: entry for _, text, entry in _rows(connection, self.device)}
        except _DamagedError as damage:
            raise InputError(f"latency table {path} is damaged ({damage}) and was not merged; copy it again") from None
        return self._add(found)

    def copy_to(self, path: Path) -> None:
        """Writes a copy, whole or not at all, to be used or merged on another machine of the same device.

        Raises:
            InputError: there is a file already.
            TrimtabError: it cannot be written.
        """
        if path.exists():
            raise InputError(f"{path} exists; give a new file, or merge into that table")
        entries = self.entries()
        with _errors_explained(path), _replaced(path) as fresh:
            _fill(fresh, self.device, entries)

    def _add(self, entries: Mapping[str, Entry]) -> int:
        def insert(connection: sqlite3.Connection) -> int:
            with _transaction(connection):
                self._read_new(connection)  # nobody else publishes between this look and the commit
                new = {text: entry for text, entry in entries.items() if text not in self._known}
                _insert(connection, self.device, new)
            self._read_new(connection)
            return len(new)

        return self._attached(insert)

    def _read_new(self, connection: sqlite3.Connection) -> None:
        for number, text, entry in _rows(connection, self.device, self._last):
            self.pace_s = self.pace_s or entry.pace_s
            self._known.setdefault(text, entry.at_pace(self.pace_s))
            self._last = number

    def _attached(self, action: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Does something with the file as it is now; where it is found damaged, mends it and does that again."""
        try:
            with self._guard(shared=True), _errors_explained(self.path):
                return action(self._current())
        except _DamagedError as damage:
            self._mend(str(damage))
        try:
            with self._guard(shared=True), _errors_explained(self.path):
                return action(self._current())
        except _DamagedError as damage:
            raise TrimtabError(
                f"latency table {self.path} is damaged as soon as written ({damage}); replace the disk, "
                "or set TRIMTAB_CACHE to another one"
            ) from None

    def _guard(self, *, shared: bool) -> AbstractContextManager[None]:
        """Whoever uses the file holds this shared, so that it is not replaced in the middle of a transaction."""
        lock = self.path.with_name(f".{self.path.name}.lock")
        return file_lock(lock, shared=shared, timeout_s=BUSY_S, busy=f"latency table {self.path} is in use")

    def _current(self) -> sqlite3.Connection:
        """The connection; a new one where there is none or the file has been replaced."""
        if self._connection is not None and self._file == _identity(self.path):
            return self._connection
        self.close()
        try:
            self._connection, self._last = _connect(self.path, "rwc"), 0
            if self._connection.execute("PRAGMA page_count").fetchone()[0] == 0:
                _create(self._connection, self.device)
            _check(self._connection, self.device, self.path)
        except BaseException:
            self.close()
            raise
        finally:
            self._file = _identity(self.path)  # now: SQLite makes a file when it is first read
        return self._connection

    def _mend(self, reason: str) -> None:
        """Keeps the damaged file aside and puts a fresh one in its place, with all that verifies."""
        self.close()
        with self._guard(shared=False), _errors_explained(self.path):
            if _identity(self.path) != self._file:
                return  # another process was quicker
            journal = self.path.with_name(f"{self.path.name}-journal")
            data = b"".join(file.read_bytes() for file in (self.path, journal) if file.exists())
            entries = salvage(data, self.device) | self._known
            with _replaced(self.path) as fresh:
                _fill(fresh, self.device, entries)
                aside = _kept_aside(self.path)
                if journal.exists():  # of a transaction cut off: it must not be played back onto the fresh file
                    journal.replace(aside.with_name(f"{aside.name}-journal"))
        notice = f"latency table {self.path} was damaged ({reason}): {len(entries)} entries carried over, {aside} kept"
        self.notices.append(notice)
        _log.warning(notice)


class _DamagedError(Exception):
    """The file is not as it was written."""


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_S,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.text_factory = bytes  # damaged text may be no UTF-8
    connection.execute("PRAGMA synchronous = EXTRA")  # a commit is on disk, also after a power cut
    return connection


def _create(connection: sqlite3.Connection, device: DeviceKey) -> None:
    connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
    with _transaction(connection):
        if connection.execute("SELECT 1 FROM sqlite_schema").fetchone() is None:  # nobody was quicker
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute("INSERT INTO device VALUES (?)", (device_row(device),))


def _check(connection: sqlite3.Connection, device: DeviceKey, path: Path) -> None:
    """Raises InputError where the file is not the device's table, _DamagedError where it is not as written."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != b"ok":
        raise _DamagedError(verdict.decode(errors="replace").splitlines()[-1])
    if tables and not tables & {b"device", b"entries"}:
        raise InputError(f"{path} is an SQLite file of another program; give another path for the latency table")
    row = connection.execute("SELECT row FROM device").fetchone()
    said = parse_device(row[0]) if row else None
    if said is None:
        raise _DamagedError("it does not say of which device it is")
    version, theirs = said
    require_version(f"latency table {path}", version, [FORMAT], "set TRIMTAB_CACHE to a fresh folder", called="format")
    unlike = [
        f"{name} {theirs.get(name)!r}, here {ours!r}"
        for name, ours in asdict(device).items()
        if theirs.get(name) != ours
    ]
    if unlike:
        raise InputError(
            f"latency table {path} is of another device ({'; '.join(unlike)}); latencies hold for one device only: "
            "measure on this one"
        )


def _rows(connection: sqlite3.Connection, device: DeviceKey, after: int = 0) -> Iterator[tuple[int, str, Entry]]:
    """(id, recipe, entry) of the rows behind that id; raises _DamagedError at one that does not verify."""
    for number, row in connection.execute("SELECT id, row FROM entries WHERE id > ? ORDER BY id", (after,)).fetchall():
        found = parse_entry(device, row)
        if found is None:
            raise _DamagedError(f"entry {number} does not verify")
        yield number, *found


def _insert(connection: sqlite3.Connection, device: DeviceKey, entries: Mapping[str, Entry]) -> None:
    rows = [(entry_row(device, text, entry),) for text, entry in entries.items()]
    connection.executemany("INSERT INTO entries (row) VALUES (?)", rows)


def _fill(path: Path, device: DeviceKey, entries: Mapping[str, Entry]) -> None:
    with closing(_connect(path, "rw")) as connection:
        _create(connection, device)
        with _transaction(connection):
            _insert(connection, device, entries)


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """An empty file that takes the place of the path's when the block ends without error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp's 0600 would hide it from others who share the cache
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk may have ended it
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _errors_explained(path: Path) -> Iterator[None]:
    """SQLite's and the system's errors as one line, or as damage."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0)
        writable = os.access(path, os.W_OK)
        if (
            code & 0xFF in _DAMAGE
            or code == sqlite3.SQLITE_IOERR_SHORT_READ
            or (code == sqlite3.SQLITE_READONLY and writable)
        ):
            raise _DamagedError(str(error)) from None
        raise TrimtabError(_cannot(path, str(error))) from None
    except UnicodeDecodeError as error:  # SQLite quotes the damaged text in its message
        raise _DamagedError(error.reason) from None
    except OSError as error:
        raise TrimtabError(_cannot(path, error.strerror or str(error))) from None


def _cannot(path: Path, why: str) -> str:
    return (
        f"latency table {path} cannot be read or written ({why}); what was published stands: make room or wait, "
        "or set TRIMTAB_CACHE to another disk"
    )


def _kept_aside(path: Path) -> Path:
    """Where a copy of the file now lies: beside it, under the first free number."""
    numbered = (path.with_name(f"{path.name}.damaged-{number}") for number in itertools.count(1))
    aside = next(name for name in numbered if not name.exists())
    try:
        shutil.copyfile(path, aside)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    return aside


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
