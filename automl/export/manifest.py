"""The manifest of an exported network: what each file is, and what was measured on it.

A manifest is data that anyone may have written: names of files are taken for names only, every value is checked.
"""

import hashlib
import json
import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, BinaryIO, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from search_spaces.errors import InputError
from search_spaces.versions import require_version

MANIFEST = "manifest.json"
POLICY = "policy.json"
ARCHITECTURE = "architecture.json"
WEIGHTS = "model.safetensors"
PROGRAM = "model.pt2"
ONNX = "model.onnx"
LIBRARY = "model.so"
ARTEFACTS = (POLICY, ARCHITECTURE, WEIGHTS, PROGRAM, ONNX, LIBRARY)
"""Every file that an export holds beside its manifest."""

SCHEMA_VERSION = 1
MAX_JSON_BYTES = 64 * 2**20
CHUNK = 2**20

Share = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Size = tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
"""Height and width in pixels."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Document(_Record):
    """A JSON file of an export: written whole, and refused with the first thing that is wrong."""

    file_name: ClassVar[str]

    def to_json(self) -> str:
        """The document as indented JSON text."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read what `to_json` wrote; InputError with the first thing that is wrong."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise InputError(f"{cls.file_name} is damaged: {first_problem(error)}") from None


class FileRecord(_Record):
    """Size and SHA-256 of one file."""

    bytes: Count
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class InputRecord(_Record):
    """What the network reads: shape of one image without the batch dimension, and its type."""

    shape: Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=1, max_length=8)]
    dtype: Literal["float32"]


class DataRecord(_Record):
    """The data set the accuracy was measured on.

    Attributes:
        name: registry name, or the user's own "package.module:attribute".
        args: its arguments, without those that are paths of a machine.
        local: names of the arguments left out because they are such paths; `verify` asks for them.
        digest: of the data set, where it has one.
    """

    name: str
    args: dict[str, Any] = Field(default_factory=dict)
    local: list[str] = Field(default_factory=list)
    digest: str | None = None


class VerificationRecord(_Record):
    """Accuracy over the first `images` of the `of` test images: what `verify` repeats."""

    images: Annotated[int, Field(gt=0)]
    of: Annotated[int, Field(gt=0)]
    accuracy: Share


class LatencyRecord(_Record):
    """Seconds of one inference at batch 1 in one engine, and how they were read off the clock."""

    median_s: Share
    p10_s: Share
    p90_s: Share
    runs: Count
    threads: Count
    max_error: float | None = None
    details: dict[str, str] = Field(default_factory=dict)


class DeviceRecord(_Record):
    """What the library was compiled for and timed on, where that is not the machine that exported.

    Attributes:
        key: what this kind of device was called.
        mcpu, mtriple: LLVM's names of its processor and of the machine; `mtriple` is empty where it is a like one.
    """

    key: str
    mcpu: str
    mtriple: str = ""


class Manifest(Document):
    """Everything said about an exported network.

    Attributes:
        files: by file name; plain names in the directory of the manifest.
        input: what the network reads, after images were brought to its resolution.
        resolution: height and width that images of the data set are brought to (`search_spaces.resizing`); None where
            they go in as they are.
        left_out: artefacts that could not be made, with the reason.
        onnx_float: what `model.onnx` computes in float32 although the policy gives it fewer bits, with the reason.
        batch: by artefact, "dynamic" or the one batch size it takes.
        accuracy: of the whole test split.
        latency: by engine; empty where nothing was measured.
        device: that the library is for, None where that is `machine`.
        results: what else the search knows of the network.
    """

    file_name = MANIFEST

    schema_version: Literal[1]
    trimtab: str
    files: dict[str, FileRecord]
    left_out: dict[str, str] = Field(default_factory=dict)
    onnx_float: dict[str, str] = Field(default_factory=dict)
    input: InputRecord
    resolution: Size | None = None
    classes: Annotated[int, Field(gt=0)]
    batch: dict[str, Literal["dynamic"] | int]
    data: DataRecord
    metric: str | None = None
    accuracy: Share
    verification: VerificationRecord
    macs: Count
    params: Count
    weight_bytes: Count
    latency: dict[str, LatencyRecord] = Field(default_factory=dict)
    machine: dict[str, str | int] = Field(default_factory=dict)
    device: DeviceRecord | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    results: dict[str, Any] = Field(default_factory=dict)

    @field_validator("files")
    @classmethod
    def _plain_names(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for name in files:
            if not is_plain_name(name):
                raise ValueError(f"a manifest lists files of its own directory by name, got {name!r}")
        return files


def is_plain_name(name: str) -> bool:
    """Whether the name is that of a file in the directory itself, on every system: no separator, drive or dot-dot."""
    return (
        bool(name)
        and name.isprintable()
        and not name.startswith(".")
        and PurePosixPath(name).name == name
        and PureWindowsPath(name).name == name
    )


def first_problem(error: ValidationError) -> str:
    """One line out of pydantic's report: where, what, and the offending value."""
    problem = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    value = "" if problem["type"] in ("missing", "json_invalid") else f", got {str(problem['input'])[:80]!r}"
    return f"{where + ': ' if where else ''}{problem['msg']}{value}".replace("\n", " ")


def open_regular(directory: Path, name: str) -> BinaryIO:
    """Open a regular file of the directory; a link (which could lead out of it), a pipe or a device is refused.

    Raises:
        InputError: the name is not a plain one, or the file is missing, unreadable or not a regular file.
    """
    if not is_plain_name(name):
        raise InputError(f"an export holds files by plain names, got {name!r}")
    try:
        descriptor = os.open(
            directory / name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        )
    except FileNotFoundError:
        raise InputError(f"{name} is missing") from None
    except OSError as error:
        if (directory / name).is_symlink():
            raise InputError(f"{name} is a symbolic link, and an export holds its files itself") from None
        raise InputError(f"{name} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{name} is not a regular file")
    return os.fdopen(descriptor, "rb")


def read_json_file(directory: Path, name: str) -> bytes:
    """The bytes of a JSON file of the directory, of a size that JSON may have."""
    with open_regular(directory, name) as file:
        text = file.read(MAX_JSON_BYTES + 1)
    if len(text) > MAX_JSON_BYTES:
        raise InputError(f"{name} is larger than {MAX_JSON_BYTES} bytes")
    return text


def read_manifest(directory: Path) -> Manifest:
    """The manifest of an exported network.

    Raises:
        InputError: the directory is none that `export_network` wrote, or its manifest is damaged.
    """
    if not directory.is_dir():
        raise InputError(f"{str(directory)!r} is not a directory; give one that an export wrote, such as RUN/best")
    if not (directory / MANIFEST).exists():
        raise InputError(
            f"{str(directory)!r} holds no {MANIFEST}; give a directory that an export wrote, such as RUN/best"
        )
    text = read_json_file(directory, MANIFEST)
    remedy = "let `trimtab export RUN` write it anew"
    require_version(MANIFEST, _version(text), [SCHEMA_VERSION], remedy, called="schema")
    return Manifest.from_json(text)


def _version(text: bytes) -> object:
    """The version that a manifest says; this one's where it says none, which is then refused with what is wrong."""
    try:
        return json.loads(text).get("schema_version", SCHEMA_VERSION)
    except (ValueError, AttributeError, RecursionError):
        return SCHEMA_VERSION


def record_file(path: Path) -> FileRecord:
    """Size and digest of a file just written."""
    with path.open("rb") as file:
        return _digest(file, None)


def copy_verified(directory: Path, name: str, expected: FileRecord, target: Path) -> str | None:
    """Copy a file out of an export while digesting it, so that what was checked is what will be loaded.

    Returns:
        What is wrong with the file, None where size and digest match. The copy exists only where they do.
    """
    try:
        with open_regular(directory, name) as source:
            size = os.fstat(source.fileno()).st_size
            if size != expected.bytes:
                return f"{size} bytes, the manifest says {expected.bytes}"
            with target.open("xb") as copy:
                found = _digest(source, copy)
    except InputError as error:
        return str(error)
    if found == expected:
        return None
    target.unlink()
    return f"SHA-256 {found.sha256[:12]}…, the manifest says {expected.sha256[:12]}…"


def _digest(source: BinaryIO, copy: BinaryIO | None) -> FileRecord:
    digest = hashlib.sha256()
    size = 0
    while chunk := source.read(CHUNK):
        digest.update(chunk)
        size += len(chunk)
        if copy is not None:
            copy.write(chunk)
    return FileRecord(bytes=size, sha256=digest.hexdigest())
