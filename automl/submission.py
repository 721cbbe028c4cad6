"""What travels with a job: its config, the files that it names, and modules of the user's own. Nothing else does.

A folder is put together that holds all of it; the cluster unpacks it, and the command reads the config there. Paths in
that config are relative to it, but for those of data sets: data stays where it is, and is found under the same path by
every node.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from automl.config import ACCELERATOR_KEY, PATH_KEYS, load_config, read_document
from automl.errors import InputError, TrimtabError
from automl.plugins import EXTERNAL, is_reference
from backends.accelerators.catalogue import is_path

CONFIG = "config.yaml"
FILES = "files"
LIMIT_BYTES = 100 * 2**20
"""What a Ray dashboard takes (`DASHBOARD_CLIENT_MAX_SIZE`)."""
LEFT_OUT = ("__pycache__", "node_modules", "build", "dist", "site-packages")
MARKS = ("pyvenv.cfg", "run.json", "supernet.json", "sweep.json", "tuning.json")
"""A folder that holds one of these is a virtual environment or somebody's results."""

Command = Literal["search", "supernet", "tune"]


@dataclass(frozen=True, slots=True)
class Parcel:
    """What was put together.

    Attributes:
        name: of the config.
        command: of Trimtab that the config is for.
        files: relative to the folder.
        size_bytes: of all files.
    """

    name: str
    command: Command
    files: tuple[str, ...]
    size_bytes: int


def pack(source: Path, overrides: Sequence[str], folder: Path, *, include: Sequence[Path] = ()) -> Parcel:
    """Put together what a config needs elsewhere.

    Args:
        source: the config, a YAML file.
        overrides: "key.sub=value" each.
        folder: empty; what travels is written here.
        include: further files and folders below the current directory, for modules of the user's that read them.

    Raises:
        InputError: the config is wrong, names a file that is not here, or what travels is too much.
    """
    document, command = _checked(source, overrides)
    here = Path.cwd().resolve()
    parcel = _Folder(folder)
    document = _with_copies(document, "", source.resolve().parent, parcel)
    for path in dict.fromkeys((*_own_modules(document, here), *_included(include, here))):
        parcel.add(path, path.relative_to(here))
    parcel.write(yaml.safe_dump(document, sort_keys=False, allow_unicode=True).encode(), Path(CONFIG))
    return Parcel(source.stem, command, tuple(sorted(parcel.files)), parcel.size_bytes)


def _checked(source: Path, overrides: Sequence[str]) -> tuple[Mapping[str, Any], Command]:
    """The config as plain data, checked by the command that its sections are for; resolved unless it is a sweep's."""
    from automl.once_for_all.config import SupernetConfig
    from automl.sweeps.config import is_sweep, load_sweep
    from automl.tuning.config import TuningConfig

    document, _, _ = read_document(source, overrides)
    if is_sweep(document):
        return load_sweep(source, overrides).document, "search"
    if "tune" in document:
        return load_config(source, overrides, kind=TuningConfig).model_dump(), "tune"
    if "devices" in document:
        return load_config(source, overrides, kind=SupernetConfig).model_dump(), "supernet"
    return load_config(source, overrides).model_dump(), "search"


class _Folder:
    """A folder that is filled until it would be too large to travel."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[str, int] = {}
        self._copies: dict[Path, str] = {}

    @property
    def size_bytes(self) -> int:
        return sum(self.files.values())

    def add(self, source: Path, name: Path) -> str:
        """Copy a file; returns its name in the folder."""
        try:
            self._count(name, source.stat().st_size)
            target = self.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        except OSError as error:
            raise InputError(f"{str(source)!r} cannot travel with the job: {error.strerror}") from None
        return str(name)

    def copy(self, source: Path, *parts: str) -> str:
        """Copy a file, or of a folder what is wanted; returns the name of the copy, which is the same next time.

        Args:
            source: absolute.
            parts: of a folder, as patterns.
        """
        if source not in self._copies:
            place = Path(FILES, str(len(self._copies) + 1), source.name)
            self._copies[source] = str(place)
            if not (parts and source.is_dir()):
                return self.add(source, place)
            found = sorted(path for part in parts for path in source.glob(part))
            if not found:
                raise InputError(f"{str(source)!r} cannot travel with the job: it holds no {parts[0]}")
            for path in found:
                self.add(path, place / path.relative_to(source))
        return self._copies[source]

    def write(self, content: bytes, name: Path) -> None:
        """A file with that content."""
        self._count(name, len(content))
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    def _count(self, name: Path, size: int) -> None:
        if str(name) in self.files:
            raise InputError(f"{str(name)!r} is a name that what travels with a job needs itself; call yours otherwise")
        self.files[str(name)] = size
        if self.size_bytes > LIMIT_BYTES:
            largest = max(self.files, key=self.files.__getitem__)
            raise InputError(
                f"what travels with a job is at most {LIMIT_BYTES >> 20} MiB, got more; the largest file is "
                f"{largest!r} ({self.files[largest] / 2**20:.1f} MiB): leave it out, or give the path of a copy on the "
                "cluster as an argument of yours"
            )


def _with_copies(value: Any, key: str, base: Path, parcel: _Folder) -> Any:
    """What of a config lies at a key, or at the end of one, with copies in place of the files that it names.

    Args:
        value: plain data.
        key: its own, after those of the sections around it; the axes of a sweep hold whole keys.
        base: what paths are relative to.
        parcel: where copies go.
    """
    if isinstance(value, Mapping):
        return {name: _with_copies(each, f"{key}.{name}", base, parcel) for name, each in value.items()}
    if isinstance(value, list):
        return [_with_copies(each, key, base, parcel) for each in value]
    if not isinstance(value, str):
        return value
    path = (base / Path(value).expanduser()).resolve()
    if key.endswith(f".{ACCELERATOR_KEY}"):
        return f"./{parcel.copy(path)}" if is_path(value) else value
    if not key.endswith(tuple(f".{name}" for name in PATH_KEYS)):
        return value
    if key.endswith(".search.init_from"):
        return parcel.copy(path, "searchers/*.safetensors")
    if key.endswith(".supernet.checkpoint"):
        return parcel.copy(path, "supernet.safetensors", "samples.json")  # what of its directory is used
    return parcel.copy(path) if key.endswith(".model.checkpoint") else str(path)


def _own_modules(document: Any, here: Path) -> Iterator[Path]:
    """The Python files below a folder, where the config names code that lies there."""
    tops = {text.partition(":")[0].partition(".")[0] for text in _strings(document) if _names_code(text)}
    if any((here / top).is_dir() or (here / f"{top}.py").is_file() for top in tops):
        yield from (path for path in _files(here) if path.suffix == ".py")


def _names_code(text: str) -> bool:
    module, _, attribute = text.partition(":")
    if not is_reference(text) or module in EXTERNAL:
        return False
    return all(part.isidentifier() for part in (*module.split("."), *attribute.split(".")))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)


def _included(paths: Sequence[Path], here: Path) -> Iterator[Path]:
    for given in paths:
        path = (here / given).resolve()
        if not path.exists() or not path.is_relative_to(here):
            raise InputError(f"--include takes files and folders of the current directory, got {str(given)!r}")
        yield from _files(path) if path.is_dir() else (path,)


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder in order; hidden ones, caches, virtual environments and results are passed over."""
    for root, folders, names in os.walk(folder):
        if root != str(folder) and any(mark in names for mark in MARKS):
            folders.clear()
            continue
        folders[:] = sorted(each for each in folders if not each.startswith(".") and each not in LEFT_OUT)
        for name in sorted(names):
            path = Path(root, name)
            if not name.startswith(".") and path.is_file():
                yield path


def unpack(out: Path, version: str) -> Path:
    """On the cluster: keep what travelled beside the run directory, for the job's own folder is deleted some day.

    Args:
        out: the run directory, which is not there yet.
        version: of Trimtab that the job was submitted with.

    Returns:
        the folder to start the run in.

    Raises:
        InputError: another version is installed here, or something is at the place already.
        TrimtabError: it cannot be written.
    """
    from automl.run.directory import RunDirectory

    check_version(version)
    RunDirectory.check_free(out)
    kept = out.with_name(f"{out.name}.submitted")
    try:
        shutil.copytree(Path.cwd(), kept)
    except FileExistsError:
        raise InputError(f"{str(kept)!r} is there already; choose another --out or --name") from None
    except (OSError, shutil.Error) as error:
        raise TrimtabError(f"{str(kept)!r} cannot be written: {error}") from None
    return kept


def check_version(version: str) -> None:
    """InputError where another Trimtab is installed than the job was submitted with."""
    from automl.run.directory import trimtab_version

    if version != trimtab_version():
        raise InputError(
            f"the job was submitted by Trimtab {version}, the cluster has {trimtab_version()}; install the same on both"
        )


def resuming(run: Path) -> list[str]:
    """On the cluster: the command that goes on with what a directory holds."""
    from automl.once_for_all.directory import SupernetDirectory
    from automl.run.directory import RunDirectory
    from automl.tuning.records import TuningDirectory

    kinds = (SupernetDirectory, TuningDirectory)
    kind: type[RunDirectory] = next((each for each in kinds if each.is_at(run)), RunDirectory)
    return [part.format(run) for part in kind.RESUME.split()[1:]]
