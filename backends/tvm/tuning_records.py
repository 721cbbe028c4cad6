"""What tuning found, kept for good: a file of lines that only grows.

Each line carries its own digest, so a line torn by a kill or a full disk, or damaged later, is as if it were not there.
The first record of a function stands.
"""

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from search_spaces.errors import TrimtabError


@dataclass(frozen=True, slots=True)
class TuningRecord:
    """The schedule of one function.

    Attributes:
        function: what identifies it, see `backends.tvm.tuning.identity`.
        name: what TVM calls it, for people who read the file.
        trials: schedules that were sampled.
        trace: JSON, as `Trace.apply_json_to_schedule` takes it.
        seconds, untuned_seconds: of one call, scheduled so and as TVM made it.
    """

    function: str
    name: str
    trials: int
    trace: str
    seconds: float
    untuned_seconds: float


class TuningRecords:
    """The records of one device, shared by processes.

    Args:
        path: the file; made, with its folder, when first written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._records: dict[str, list[TuningRecord]] = {}
        self._verified: set[str] = set()

    def find(self, function: str, trials: int) -> TuningRecord | None:
        """The first record of the function that took at least so many trials."""
        self._read()
        return next((record for record in self._records.get(function, ()) if record.trials >= trials), None)

    def publish(self, record: TuningRecord) -> TuningRecord:
        """Adds a record; returns the one that stands, which another process may have published before.

        Raises:
            TrimtabError: it cannot be written.
        """
        with self._locked() as descriptor:
            standing = self.find(record.function, record.trials)
            if standing is None:
                self._append(descriptor, {"record": asdict(record)})
        return standing or record

    def is_verified(self, code: str) -> bool:
        """Whether that code has been seen to give torch's numbers."""
        self._read()
        return code in self._verified

    def mark_verified(self, code: str) -> None:
        """Notes that it has. Raises TrimtabError where it cannot be written."""
        with self._locked() as descriptor:
            self._append(descriptor, {"verified": code})

    def _read(self) -> None:
        """Takes in the lines added since the last time."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                added = file.read()
        except FileNotFoundError:
            return
        except OSError as error:
            raise TrimtabError(f"cannot read the tuning records {self.path} ({error.strerror})") from error
        whole = added[: added.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            match _content(line):
                case {"record": record}:
                    self._records.setdefault(record["function"], []).append(TuningRecord(**record))
                case {"verified": code}:
                    self._verified.add(code)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The file, open to append, and nobody else's meanwhile."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield descriptor
            finally:
                os.close(descriptor)
        except OSError as error:
            raise TrimtabError(f"cannot write the tuning records {self.path} ({error.strerror})") from error

    def _append(self, descriptor: int, content: dict[str, Any]) -> None:
        text = json.dumps(content, sort_keys=True)
        line = f"{_digest(text)} {text}\n".encode()
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line  # behind a line that was torn
        if os.write(descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)


def _content(line: bytes) -> Any:
    """What a line says; None where it is damaged."""
    digest, _, text = line.decode(errors="replace").partition(" ")
    return json.loads(text) if digest == _digest(text) else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
