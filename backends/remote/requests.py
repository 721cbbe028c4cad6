"""What `backends.remote.fleet` asks its workers for, each request with the seconds after which it is given up."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from backends.recipes import Recipe
from backends.remote.device import Place, RemoteDevice

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Start:
    """First request: makes ready for a kind of device; all files go into the folder. Answered by "ready"."""

    device: RemoteDevice
    threads: int
    folder: Path


@dataclass(frozen=True, slots=True)
class Compile:
    """Compiles an operator. Answered by "compiled"."""

    recipe: Recipe
    limit_s: float


@dataclass(frozen=True, slots=True)
class TimeOperator:
    """Checks and times the operator compiled last on a device. Answered by its Timing, or a Fault."""

    place: Place
    limit_s: float


@dataclass(frozen=True, slots=True)
class Open:
    """Begins a session of networks on a device. Answered by "open", or a Fault."""

    place: Place
    limit_s: float


@dataclass(frozen=True, slots=True)
class Load:
    """Puts a network's library on the device. Answered by its output for that input, or a Fault."""

    library: Path
    example: Array
    limit_s: float


@dataclass(frozen=True, slots=True)
class Sample:
    """Times one of the networks loaded, by its number. Answered by (seconds of a call, calls, pace), or a Fault."""

    network: int
    limit_s: float


@dataclass(frozen=True, slots=True)
class Close:
    """Ends the session of networks. Answered by "closed"."""

    limit_s: float


@dataclass(frozen=True, slots=True)
class Fault:
    """A device did not do what it should.

    Attributes:
        reason: in a line.
        unfit: whether that goes for whatever it is asked.
    """

    reason: str
    unfit: bool = False
