"""Whole networks timed on a device, in turns: the counterpart of `backends.measuring` for devices elsewhere."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from backends.measuring import Measurement
from backends.recipes import OperatorFailure
from backends.remote.device import Place
from backends.remote.fleet import Fleet
from backends.remote.requests import Close, Fault, Load, Open, Sample
from backends.worker_process import WorkerProcess
from search_spaces.errors import TrimtabError

Array = npt.NDArray[Any]

_ATTEMPTS = 2
_FEW_ROUNDS, _LONG_S = 5, 60.0
"""Rounds that are enough once a session has taken so long."""


class Agreement(Protocol):
    """How far an output is from what it must be, in figures and in words."""

    @property
    def error(self) -> float:
        """As a share."""

    @property
    def holds(self) -> bool:
        """Whether that is near enough."""


@dataclass(frozen=True)
class Network:
    """A library compiled for the device, and what compares its output for the example."""

    library: Path
    compare: Callable[[Array], Agreement]


def measure_networks(
    fleet: Fleet, networks: Sequence[Network], example: Array | Sequence[Array], *, rounds: int = 100
) -> list[Measurement]:
    """Seconds of one inference of each network, all on one and the same device.

    Args:
        fleet: the devices.
        networks: in whose order the measurements come.
        example: [N, ...] their input; or a list of one for each.
        rounds: samples of each; fewer where a network takes long.

    Raises:
        TrimtabError: no device is to be had, or each that was asked was lost, hung or answered wrongly.
    """
    examples = [example] * len(networks) if isinstance(example, np.ndarray) else example
    job, reasons = " ".join(str(network.library) for network in networks), []
    for _ in range(_ATTEMPTS):
        try:
            with fleet.worker() as worker:
                turns = _Turns(fleet, worker, networks, examples, rounds)
                found: list[Measurement] = fleet.on_a_device(job, turns.measured)
                return found
        except OperatorFailure as failure:
            reasons.append(failure.reason)
    raise TrimtabError(f"networks could not be measured on a device of kind {fleet.device.key!r}: {'; '.join(reasons)}")


@dataclass(frozen=True)
class _Turns:
    """The measuring of some networks."""

    fleet: Fleet
    worker: WorkerProcess
    networks: Sequence[Network]
    examples: Sequence[Array]
    rounds: int

    def measured(self, place: Place) -> list[Measurement] | Fault:
        """The measurements on that device, or what went wrong with it."""
        try:
            self._ask(Open(place, self._limit_s))
            errors = [self._loaded(*each) for each in zip(self.networks, self.examples, strict=True)]
            samples = self._samples()
            self._ask(Close(self._limit_s))
        except _FaultError as error:
            return error.fault
        return [self._measurement(place, *one) for one in zip(errors, samples, strict=True)]

    @property
    def _limit_s(self) -> float:
        return self.fleet.device.timeout_s

    def _ask(self, request: Open | Load | Sample | Close) -> Any:
        answer = self.worker.ask(request, request.limit_s)
        if isinstance(answer, Fault):
            raise _FaultError(answer)
        return answer

    def _loaded(self, network: Network, example: Array) -> float:
        """Loads a network; how far its answer is from the right one."""
        output = self._ask(Load(network.library, example, self._limit_s))
        found = network.compare(output)
        if not found.holds:
            self.worker.ask(Close(self._limit_s), self._limit_s)
            raise _FaultError(Fault(f"network {network.library.stem} answers wrongly: {found}"))
        return found.error

    def _samples(self) -> list[list[tuple[float, int, float]]]:
        """(seconds, calls, pace) of each network in each round; every other round goes backwards."""
        samples: list[list[tuple[float, int, float]]] = [[] for _ in self.networks]
        begin = time.monotonic()
        for number in range(self.rounds):
            if number >= _FEW_ROUNDS and time.monotonic() - begin > _LONG_S:
                break
            for index in range(len(samples)) if number % 2 == 0 else reversed(range(len(samples))):
                samples[index].append(self._ask(Sample(index, self._limit_s)))
        return samples

    def _measurement(self, place: Place, error: float, samples: Sequence[tuple[float, int, float]]) -> Measurement:
        seconds, calls, paces = map(np.array, zip(*samples, strict=True))
        p10, median, p90 = map(float, np.percentile(seconds, [10, 50, 90]))
        device, threads = self.fleet.device, self.fleet.threads
        about = {"tvm": version("apache-tvm"), "device": f"{device.key} at {place.name}", "target": device.target}
        return Measurement(median, p10, p90, int(calls.sum()), threads, "tvm", error, float(np.median(paces)), about)


class _FaultError(Exception):
    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.reason)
        self.fault = fault
