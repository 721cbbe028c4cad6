"""Copies of run directories on shared storage: a directory, S3, or whatever else pyarrow opens by a URI.

A copy is a manifest, which names every file by the digest of its content, and the contents under `objects/`. Contents
are written first and the manifest last, in one step, so a copy that was cut short is the one before it. What no
manifest names any more is removed afterwards. Whoever fetches a copy checks every digest, and writes nowhere but into
the directory that is made for it.
"""

import hashlib
import json
import re
import secrets
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from automl.errors import InputError, TrimtabError
from automl.run.directory import RunDirectory

FORMAT = 1
MANIFEST = "copy.json"
OBJECTS = "objects"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PASSING = ("-wal", "-shm", "-journal")


class Copy:
    """One copy of one run directory.

    Args:
        uri: of the copy: "s3://bucket/runs/name", "file:///nfs/runs/name" or an absolute path.

    Raises:
        InputError: no such storage, or a URI with a password in it.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._system, path = opened(uri)
        self._path = path.rstrip("/")

    @classmethod
    def within(cls, storage: str, name: str) -> "Copy":
        """The copy of that name in a config's storage."""
        address, question, options = storage.partition("?")
        return cls(f"{address.rstrip('/')}/{name}{question}{options}")

    @property
    def name(self) -> str:
        """Of the run."""
        return PurePosixPath(self._path).name

    def manifest(self) -> dict[str, Any] | None:
        """What the copy holds; None where there is none.

        Raises:
            InputError: it is damaged, or of another version.
        """
        content = self._read(MANIFEST)
        if content is None:
            return None
        try:
            found = json.loads(content)
            known, owner, files = found["format"], found["owner"], found["files"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(f"the copy {self.uri!r} is damaged: {MANIFEST} cannot be read") from None
        if known != FORMAT:
            raise InputError(f"the copy {self.uri!r} has format {known!r}; this version reads {FORMAT}")
        if not isinstance(owner, str) or not isinstance(files, dict):
            raise InputError(f"the copy {self.uri!r} is damaged: {MANIFEST} holds no files")
        for name, digest in files.items():
            if not (isinstance(digest, str) and _DIGEST.fullmatch(digest) and _plain(name)):
                raise InputError(f"the copy {self.uri!r} is refused: {MANIFEST} names a file {name!r}")
        return dict(found)

    def check_owner(self, owner: str) -> None:
        """InputError where it is the copy of another run."""
        found = self.manifest()
        if found is not None and found["owner"] != owner:
            raise InputError(
                f"{self.uri!r} is the copy of another run; take another --out, whose name is the copy's, or another "
                "storage.uri"
            )

    def write(self, directory: Path, owner: str) -> None:
        """Bring the copy up to date.

        Args:
            directory: of the run; whoever works in it may go on meanwhile.
            owner: tells runs of the same name apart.

        Raises:
            TrimtabError: the storage does not take it; the copy is as it was.
        """
        known = self.manifest()
        there = set() if known is None else set(known["files"].values())
        files: dict[str, str] = {}
        try:
            self._system.create_dir(f"{self._path}/{OBJECTS}", recursive=True)
            for name, content in _contents(directory):
                digest = hashlib.sha256(content).hexdigest()
                files[name] = digest
                if digest not in there:
                    self._write(f"{OBJECTS}/{digest}", content)
                    there.add(digest)
            manifest = json.dumps({"format": FORMAT, "owner": owner, "files": files}, indent=1).encode()
            temporary = f".{MANIFEST}.{secrets.token_hex(4)}"
            self._write(temporary, manifest)
            self._system.move(f"{self._path}/{temporary}", f"{self._path}/{MANIFEST}")
            for digest in there - set(files.values()):
                with suppress(OSError):
                    self._system.delete_file(f"{self._path}/{OBJECTS}/{digest}")
        except OSError as error:
            raise TrimtabError(f"the run cannot be copied to {self.uri!r}: {_one_line(error)}") from error

    def fetch(self, directory: Path) -> None:
        """Write the copy into a directory that is empty or not there yet.

        Raises:
            InputError: there is no copy, or it is damaged; what was written is removed.
        """
        manifest = self.manifest()
        if manifest is None:
            raise InputError(f"there is no copy of a run at {self.uri!r}: it has no {MANIFEST}")
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as folder:
            whole = Path(folder) / "run"
            for name, digest in manifest["files"].items():
                content = self._read(f"{OBJECTS}/{digest}")
                if content is None or hashlib.sha256(content).hexdigest() != digest:
                    raise InputError(f"the copy {self.uri!r} is damaged: the content of {name!r} is not what it was")
                file = whole / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            if directory.exists():
                directory.rmdir()
            whole.replace(directory)

    def _read(self, name: str) -> bytes | None:
        try:
            with self._system.open_input_stream(f"{self._path}/{name}") as stream:
                content: bytes = stream.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise TrimtabError(f"the copy {self.uri!r} cannot be read: {_one_line(error)}") from error
        return content

    def _write(self, name: str, content: bytes) -> None:
        with self._system.open_output_stream(f"{self._path}/{name}") as stream:
            stream.write(content)


def opened(uri: str) -> tuple[Any, str]:
    """pyarrow's file system for a URI, and the path in it.

    Raises:
        InputError: there is no such storage, or the URI has a password in it.
    """
    import pyarrow
    from pyarrow import fs

    if urlsplit(uri).password is not None:
        raise InputError("storage.uri holds no password; give it as the storage's own settings do (docs/cluster.md)")
    try:
        system, path = fs.FileSystem.from_uri(uri)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, OSError, ValueError) as error:
        raise InputError(
            f"storage.uri is that of a directory, S3 or the like, got {uri!r}: {_one_line(error)}"
        ) from None
    return system, str(path)


def is_copy(source: str) -> bool:
    """Whether a command's argument names a copy instead of a run directory."""
    return "://" in source or (Path(source) / MANIFEST).is_file()


def owner_of(directory: RunDirectory) -> str:
    """What tells a run from others of its name: its config and when it was made."""
    return hashlib.sha256(directory.config_file.read_bytes() + directory.info().created_at.encode()).hexdigest()


def _contents(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Every file that counts, databases as they were at one moment."""
    for file in sorted(directory.rglob("*")):
        name = file.relative_to(directory).as_posix()
        hidden = any(part.startswith(".") for part in PurePosixPath(name).parts)  # locks, and what is half written
        if hidden or file.is_symlink() or not file.is_file() or name.endswith(_PASSING):
            continue
        with suppress(FileNotFoundError):  # replaced meanwhile by a stage that has ended
            yield name, _database(file) if file.suffix == ".sqlite" else file.read_bytes()


def _database(file: Path) -> bytes:
    """A consistent copy of a database that is being written to."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / file.name
        with (
            closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=30)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
            target.execute("PRAGMA journal_mode=DELETE")
        return copy.read_bytes()


def _plain(name: object) -> bool:
    """Whether a name of a manifest lies within the run directory, whatever it is written to."""
    if not isinstance(name, str) or not name or "\\" in name or ":" in name or "\0" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and str(path) == name and not any(part.startswith(".") for part in path.parts)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
