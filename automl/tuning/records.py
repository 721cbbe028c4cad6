"""What is kept of a tuning: a JSON file a trial, and the newest snapshot of its searcher. Nothing of Ray is needed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

from automl.config import load_config
from automl.errors import InputError
from automl.run.directory import RunDirectory, write_atomically
from automl.tuning.config import TuningConfig

State = Literal["running", "stopped", "finished", "failed"]
"""running: it goes on; stopped: others were better; finished: it made all its evaluations; failed: its search did."""


@dataclass(frozen=True)
class TrialRecord:
    """How far a trial is.

    Attributes:
        name: of the trial.
        options: of its search, as they are now.
        reports: (evaluations, best accuracy so far) of each report; None where nothing within the budgets was found.
        snapshot: file name of its searcher's snapshot, of the last report; None before the first.
        state: see `State`.
        error: why it failed.
    """

    name: str
    options: Mapping[str, Any]
    reports: Sequence[tuple[float, float | None]] = field(default_factory=tuple)
    snapshot: str | None = None
    state: State = "running"
    error: str | None = None

    @property
    def evaluations(self) -> float:
        """At the last report."""
        return self.reports[-1][0] if self.reports else 0.0

    @property
    def accuracy(self) -> float | None:
        """The best at the last report."""
        return self.reports[-1][1] if self.reports else None

    def to_json(self) -> bytes:
        """As a file holds it."""
        return (json.dumps(asdict(self), indent=2, allow_nan=False) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """What `to_json` gave.

        Raises:
            ValueError, TypeError, KeyError, RecursionError: it is something else.
        """
        values = json.loads(content)
        reports = tuple((float(count), None if best is None else float(best)) for count, best in values["reports"])
        record = cls(**{**values, "reports": reports})
        if record.state not in get_args(State):
            raise ValueError(f"there is no state {record.state!r}")
        if record.snapshot is not None and Path(record.snapshot).name != record.snapshot:
            raise ValueError(f"{record.snapshot!r} is no file name")
        return record

    def reported(self, evaluations: float, accuracy: float | None) -> "TrialRecord":
        """With one more report."""
        return replace(self, reports=(*self.reports, (evaluations, accuracy)))


class TuningDirectory(RunDirectory):
    """The directory of a tuning; its state is kept as that of a run."""

    INFO = "tuning.json"
    KIND = "tuning"
    MADE_BY = "trimtab tune"
    RESUME = "trimtab tune {} --resume"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.trials = path / "trials"
        self.best_file = path / "best.yaml"

    def config(self) -> TuningConfig:
        """The resolved config that the tuning was started with."""
        return load_config(self.config_file, kind=TuningConfig)

    def records(self) -> list[TrialRecord]:
        """All trials, those that have not begun with the options that they begin with.

        Raises:
            InputError: a file is damaged.
        """
        drawn = self.config().tune.drawn()
        names = [f"trial-{number:03d}" for number in range(len(drawn))]
        return [self.read(name) or TrialRecord(name, options) for name, options in zip(names, drawn, strict=True)]

    def read(self, name: str) -> TrialRecord | None:
        """A trial's record; None where it has none yet. See `records`."""
        file = self.trials / f"{name}.json"
        try:
            record = TrialRecord.from_json(file.read_bytes())
            if record.name != name:
                raise ValueError(f"it is of trial {record.name!r}")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise InputError(f"{str(file)!r} is damaged: {error}; remove it, and the trial begins anew") from None
        if record.state == "running" and (self.trials / f"{name}.stopped").exists():
            return replace(record, state="stopped")
        return record

    def write(self, record: TrialRecord, snapshot: bytes | None = None) -> TrialRecord:
        """Keep a record, with a new snapshot where there is one; returns it with the snapshot's name."""
        self.trials.mkdir(exist_ok=True)
        before = record.snapshot
        if snapshot is not None:
            # a name of its own, so that record and snapshot are replaced together
            record = replace(record, snapshot=f"{record.name}-{len(record.reports)}.safetensors")
            write_atomically(self.trials / str(record.snapshot), snapshot)
        write_atomically(self.trials / f"{record.name}.json", record.to_json())
        if before is not None and before != record.snapshot:
            (self.trials / before).unlink(missing_ok=True)
        return record

    def read_snapshot(self, record: TrialRecord) -> bytes | None:
        """The snapshot of a record.

        Raises:
            InputError: its file is gone.
        """
        if record.snapshot is None:
            return None
        try:
            return (self.trials / record.snapshot).read_bytes()
        except OSError as error:
            raise InputError(f"the snapshot {record.snapshot!r} of {record.name} is gone: {error.strerror}") from None

    def mark_stopped(self, name: str) -> None:
        """Note that a trial does not go on; apart from its record, which its own process may be writing."""
        self.trials.mkdir(exist_ok=True)
        (self.trials / f"{name}.stopped").touch()


def ranked(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The best first: of those that made all their evaluations, then of the others."""

    def key(record: TrialRecord) -> tuple[bool, float, float]:
        accuracy = float("-inf") if record.accuracy is None else record.accuracy
        return record.state == "finished", accuracy, record.evaluations

    return sorted((record for record in records if record.reports), key=key, reverse=True)
