"""The directory of a run: where everything lies, its state, and the lock of whoever drives it."""

import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

from automl.config import Config, load_config
from automl.errors import InputError
from automl.run.lock import RunLock
from search_spaces.versions import require_version

FORMAT = 1
State = Literal["running", "unfinished", "failed", "infeasible", "done"]
"""running: someone drives it (or died); unfinished: stopped, to be resumed; failed: ended by an error;
infeasible: searched to the end without a policy within the budget; done."""

ENDED = ("done", "infeasible")
"""States that are not gone on from."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What `run.json` holds.

    Attributes:
        state: see `State`.
        stage: what it was last doing, for people.
        reason: why it is failed, infeasible or unfinished.
        wall_s: seconds that it was driven so far, over all resumes.
        created_at: UTC.
        working_directory: where the run was started: a user's own modules are imported from there.
        trimtab: version that made it.
        format: version of the directory's layout.
    """

    state: State
    stage: str
    reason: str | None
    wall_s: float
    created_at: str
    working_directory: str
    trimtab: str
    format: int = FORMAT


class RunDirectory:
    """Paths and state of one run. `create` makes a new one, `open` takes one that exists.

    Attributes:
        INFO: name of the file that makes a directory one of this kind.
        KIND: what it is, for people.
        MADE_BY: the command that makes one.
        RESUME: the command that goes on with it.
    """

    INFO: ClassVar = "run.json"
    KIND: ClassVar = "run directory"
    MADE_BY: ClassVar = "trimtab search"
    RESUME: ClassVar = "trimtab resume {}"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.info_file = path / self.INFO
        self.baseline_file = path / "baseline.safetensors"
        self.store_file = path / "trials.sqlite"
        self.searchers = path / "searchers"
        self.agent_file = path / "agent.safetensors"
        self.prior_file = path / "prior.json"
        self.samples_file = path / "samples.json"
        self.finalists = path / "finalists"
        self.budget_file = path / "latency_budget.json"
        self.estimates_file = path / "estimates.json"
        self.latency_file = path / "latency.json"
        self.accelerator_file = path / "accelerator.json"
        self.explanation_file = path / "explanation.json"
        self.best = path / "best"
        self.summary_file = path / "summary.json"
        self.report_file = path / "report.html"
        self.error_log = path / "error.log"
        self.driver = RunLock(path)

    @classmethod
    def create(cls, path: Path, config: Config) -> Self:
        """A new run directory that holds its resolved config.

        Raises:
            InputError: there is something at that path already, or it cannot be made.
        """
        cls.check_free(path)
        directory = cls(path)
        directory.made_with(config.to_yaml())
        return directory

    def made_with(self, config: str) -> None:
        """Write what makes it a run directory: its config as YAML, then its state; InputError where it cannot be."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.config_file, config.encode())
            self.write_info(
                RunInfo(
                    state="unfinished",
                    stage="created",
                    reason=None,
                    wall_s=0.0,
                    created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                    working_directory=str(Path.cwd()),
                    trimtab=trimtab_version(),
                )
            )
        except OSError as error:
            raise InputError(f"the run directory {str(self.path)!r} cannot be made: {error.strerror}") from None

    @staticmethod
    def check_free(path: Path) -> None:
        """InputError where something is at the path already; nothing is touched."""
        try:
            taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
        except OSError as error:
            raise InputError(f"the run directory {str(path)!r} cannot be used: {error.strerror}") from None
        if not taken:
            return
        if (path / "run.json").exists() or (path / "sweep.json").exists():
            raise InputError(
                f"{str(path)!r} holds a run already; `trimtab resume {path}` goes on with it, --out takes another"
            )
        raise InputError(f"{str(path)!r} exists and is not empty; choose another --out")

    @classmethod
    def is_at(cls, path: Path) -> bool:
        """Whether a path is a directory of this kind."""
        return (path / cls.INFO).is_file()

    @classmethod
    def open(cls, path: Path) -> Self:
        """A directory of this kind that exists; InputError where it is none."""
        directory = cls(path)
        directory.info()
        if not directory.config_file.is_file():
            raise InputError(f"{str(path)!r} is no {cls.KIND}: it has no config.yaml")
        return directory

    def config(self) -> Config:
        """The resolved config the run was started with; the agent that it began with is the copy kept here."""
        config = load_config(self.config_file)
        if config.search.init_from is None or not self.agent_file.is_file():
            return config
        begun = config.search.model_copy(update={"init_from": str(self.agent_file.resolve())})
        return config.model_copy(update={"search": begun})

    def info(self) -> RunInfo:
        """What `run.json` says now.

        Raises:
            InputError: no run directory, or one of another version.
        """
        try:
            values = json.loads(self.info_file.read_bytes())
        except FileNotFoundError:
            raise InputError(
                f"{str(self.path)!r} is no {self.KIND}: it has no {self.INFO} (`{self.MADE_BY}` makes one)"
            ) from None
        except OSError as error:
            raise InputError(f"{str(self.path)!r} is no {self.KIND}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{str(self.info_file)!r} is damaged: {error}") from None
        found = values.get("format") if isinstance(values, dict) else None
        require_version(repr(str(self.path)), found, [FORMAT], "start a new run", called="layout")
        try:
            info = RunInfo(**values)
        except TypeError:
            raise InputError(f"{str(self.info_file)!r} is damaged: keys are missing or unknown") from None
        if info.state not in get_args(State) or not isinstance(info.wall_s, int | float):
            raise InputError(f"{str(self.info_file)!r} is damaged: state {info.state!r}, wall_s {info.wall_s!r}")
        return info

    def summary(self) -> dict[str, Any]:
        """What `summary.json` holds; empty where there is none yet."""
        try:
            found = json.loads(self.summary_file.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{str(self.summary_file)!r} is damaged: {error}") from None
        return found if isinstance(found, dict) else {}

    def write_info(self, info: RunInfo) -> None:
        """Replace `run.json`, atomically."""
        write_json(self.info_file, asdict(info))

    @property
    def resume_command(self) -> str:
        """What goes on with it."""
        return self.RESUME.format(self.path)

    def standing(self) -> RunInfo:
        """As `info`, but what says that it is running while nobody drives it was killed: it is unfinished."""
        info = self.info()
        if info.state == "running" and not self.driven():
            return replace(info, state="unfinished", reason=f"killed; `{self.resume_command}` goes on")
        return info

    @property
    def driver_text(self) -> str | None:
        """Who drives it, for people; None where nobody does."""
        holder = self.driver.holder
        return None if holder is None else holder.text

    def driven(self) -> bool:
        """Whether some process drives the run at this moment."""
        return self.driver.held()

    @contextmanager
    def drive(self) -> Iterator["RunClock"]:
        """Hold the run's lock and keep its state; see `lock`."""
        with self.lock():
            yield RunClock(self)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One process at a time works on a run; see `automl.run.lock`.

        Raises:
            TrimtabError: another process holds it.
        """
        with self.driver.hold():
            yield


class RunClock:
    """Keeps `run.json` true while the run is driven: its state, its stage, and the seconds spent on it.

    Attributes:
        on_stage: called when a stage has ended; None where nobody asks.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        self._info = directory.info()
        self.on_stage: Callable[[], None] | None = None
        self._before_s = self._info.wall_s
        self._started = self._written = time.monotonic()
        self.set("running", "starting")

    @property
    def wall_s(self) -> float:
        """Seconds that the run was driven, over all resumes."""
        return self._before_s + time.monotonic() - self._started

    def set(self, state: State, stage: str | None = None, reason: str | None = None) -> None:
        """Write the state down; TrimtabError where another process has taken the run over."""
        self._directory.driver.check()
        changed = stage is not None or state != self._info.state
        stage = self._info.stage if stage is None else stage
        self._info = replace(self._info, state=state, stage=stage, reason=reason, wall_s=round(self.wall_s, 3))
        self._written = time.monotonic()
        self._directory.write_info(self._info)
        if self.on_stage is not None and changed:
            self.on_stage()

    def beat(self, every_s: float = 5.0) -> None:
        """Note the time spent, now and then, so that a kill loses little of it."""
        if time.monotonic() - self._written >= every_s:
            self.set(self._info.state, reason=self._info.reason)


def make_importable(folder: str) -> None:
    """Find modules in a folder, too: a user's own are imported from where their run was started."""
    if folder not in sys.path:
        sys.path.append(folder)  # last, so that they shadow nothing


def next_free(parent: Path, name: str) -> Path:
    """`parent/name-N` with the smallest N from 1 that does not exist."""
    number = 1
    while (parent / f"{name}-{number}").exists():
        number += 1
    return parent / f"{name}-{number}"


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinity are refused, for JSON has none."""
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Either the old file or the whole new one, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_directory(path: Path) -> None:
    """Put a directory's entries on disk: a rename is durable only then."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def trimtab_version() -> str:
    """Version of the installed distribution."""
    try:
        return version("trimtab")
    except PackageNotFoundError:
        return "unknown"
