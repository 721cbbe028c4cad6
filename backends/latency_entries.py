"""An entry of a latency table, the device it holds for, and how both are written: a line of text that verifies."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

FORMAT = 1
"""Version of the rows."""

_ROW = re.compile(rb"(?=([0-9a-f]{32} \{[^\n]*\}\n))")


@dataclass(frozen=True, slots=True)
class DeviceKey:
    """All that a latency depends on besides the operator; entries of unlike keys never meet in one table.

    Attributes:
        engine: "tvm", "onnxruntime", "torch-eager", ...
        cpu: the processor's name.
        target: what code was compiled for, such as "x86-64-v4".
        threads: threads the engine may use.
        versions: of the engine and the compiler beneath it.
        rules: digest of the source that turns a recipe into code.
    """

    engine: str
    cpu: str
    target: str
    threads: int
    versions: str
    rules: str

    @property
    def text(self) -> str:
        """Canonical text, the same for equal keys in every process."""
        return _canonical(asdict(self))

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that tell devices apart in file names."""
        return _digest(self.text)[:16]


@dataclass(frozen=True, slots=True)
class Entry:
    """One operator's measured latency.

    Attributes:
        latency_s: median seconds of one execution.
        p10_s, p90_s: percentiles of it.
        runs: executions that were timed.
        error: max|a-b| / max|a| against torch's result.
        structure: hash of the code that was timed.
        kind, work, traffic: of the recipe (see `backends.recipes.Recipe`).
        pace_s: the processor's pace that the latencies hold for (see `backends.clock`); 0 where it is not known.

    Raises:
        ValueError: a figure that no measurement gives.
    """

    latency_s: float
    p10_s: float
    p90_s: float
    runs: int
    error: float
    structure: str
    kind: str
    work: float
    traffic: float
    pace_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.p10_s <= self.latency_s <= self.p90_s < math.inf:
            raise ValueError(f"no latency: {self.latency_s} s between {self.p10_s} s and {self.p90_s} s")
        if self.runs < 1:
            raise ValueError(f"a latency of {self.runs} runs")
        for name in ("error", "work", "traffic", "pace_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}")

    def at_pace(self, pace_s: float) -> "Entry":
        """What would have been measured at another pace of the processor; itself where either is not known."""
        if not self.pace_s or not pace_s or self.pace_s == pace_s:
            return self
        factor = pace_s / self.pace_s
        p10, median, p90 = (seconds * factor for seconds in (self.p10_s, self.latency_s, self.p90_s))
        return replace(self, latency_s=median, p10_s=p10, p90_s=p90, pace_s=pace_s)


def entry_row(device: DeviceKey, recipe: str, entry: Entry) -> str:
    """A line that says all of an entry; the checksum in front covers the device, too."""
    content = _canonical({"recipe": recipe, **asdict(entry)})
    return f"{_digest(device.text + content)} {content}\n"


def parse_entry(device: DeviceKey, row: object) -> tuple[str, Entry] | None:
    """Recipe and entry of a row as read; None where it does not verify as one of the device."""
    checksum, content = _parts(row)
    if checksum != _digest(device.text + content):
        return None
    values = json.loads(content)
    return values.pop("recipe"), Entry(**values)


def device_row(device: DeviceKey) -> str:
    """A line that says which device a table is of, and in which format its rows are."""
    content = _canonical({"format": FORMAT, "device": asdict(device)})
    return f"{_digest(content)} {content}\n"


def parse_device(row: object) -> tuple[int, dict[str, Any]] | None:
    """Format and device (by field) of a row as read; None where it does not verify."""
    checksum, content = _parts(row)
    if checksum != _digest(content):
        return None
    values = json.loads(content)
    return values["format"], values["device"]


def salvage(data: bytes, device: DeviceKey) -> dict[str, Entry]:
    """The device's entries that stand somewhere in the bytes and verify, by recipe, whatever lies between them."""
    found = (parse_entry(device, match[1]) for match in _ROW.finditer(data))
    return dict(entry for entry in found if entry is not None)


def _parts(row: object) -> tuple[str, str]:
    text = row.decode(errors="replace") if isinstance(row, bytes) else ""
    checksum, _, content = text.removesuffix("\n").partition(" ")
    return checksum, content


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
