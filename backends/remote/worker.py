"""The process that compiles for a remote device and talks to it, for `backends.remote.fleet`: killed where that hangs.

    python -P -m backends.remote.worker

It answers its parent's requests as long as its stdin is open (see `backends.worker_process`). What goes wrong with a
device is an answer, too: a Fault.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backends.measuring import TOLERANCE
from backends.operator_worker import steadiest
from backends.recipes import Timing
from backends.remote.device import Place
from backends.remote.requests import Close, Compile, Fault, Load, Open, Sample, Start, TimeOperator
from backends.remote.session import Bound, Session, UnfitError, write_probe
from backends.tvm.linking import linker
from backends.tvm.operator_engine import PLACES, InARow, in_a_row
from backends.worker_process import serve

_SAMPLE_S = 1e-3
_SAMPLES, _FEW_SAMPLES, _LONGEST_ROUND_S = 28, 8, 0.4
"""Of a round, over all places in memory; few where they would take longer than that."""
_LONG_S = 5.0
"""Rounds that fit into so long are enough, one at least."""
_SETTLING = 2
"""Samples behind a change of network that do not count: its weights come back into the cache."""
_NETWORK_SESSION = 20
"""A session of networks takes many requests, each of which has the device's time limit."""


class Worker:
    """Does what is requested, with one device at a time."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._row: InARow | None = None
        self._session: Session | None = None
        self._networks: list[tuple[Bound, int]] = []

    def answer(self, request: Any) -> Any:
        """The answer to a request. Raises whatever the compiler raises."""
        match request:
            case Start():
                tempfile.tempdir = str(request.folder)  # we may be killed, and nothing is to stay behind
                self._device, self._threads = request.device, request.threads
                self._cpu = request.device.cpu(request.threads)
                self._library, self._probe = request.folder / "operator.so", request.folder / "probe.so"
                write_probe(self._probe, self._cpu)
                return "ready"
            case Compile():
                self._row = None
                row = in_a_row(request.recipe, self._cpu)  # type: ignore[arg-type]  # the recipes of TVM's table
                row.executable.export_library(str(self._library), fcompile=linker(self._cpu))
                self._row = row
                return "compiled"
            case Close():
                self._end_session()
                return "closed"
        return self._faults_told(lambda: self._on_the_device(request))

    def _on_the_device(self, request: Any) -> Any:
        match request:
            case TimeOperator() if self._row is not None:
                with self._opened(request.place, self._device.timeout_s) as session:
                    return _timing(session, self._library, self._row)
            case Open():
                self._end_session()
                self._session = self._opened(request.place, _NETWORK_SESSION * self._device.timeout_s)
                return "open"
            case Load() if self._session is not None:
                bound = self._session.bind(request.library, request.example)
                output = bound.run()
                self._networks.append((bound, _sampling(bound)[0]))
                return output
            case Sample() if self._session is not None:
                bound, calls = self._networks[request.network]
                pace = self._session.pace()
                return bound.time(calls, 1 + _SETTLING)[-1], calls, pace
        raise ValueError(f"{type(request).__name__} out of turn")

    def _opened(self, place: Place, lasting_s: float) -> Session:
        return Session(place, self._known, self._probe, self._threads, lasting_s)

    def _end_session(self) -> None:
        self._networks.clear()
        if self._session is not None:
            self._session.close()
        self._session = None

    def _faults_told(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except UnfitError as error:
            fault = Fault(str(error), unfit=True)
        except Exception as error:  # TVM raises many types where a connection breaks
            fault = Fault(_told(error))
        self._end_session()
        return fault


def main() -> None:
    """Answers requests until stdin closes."""
    serve(Worker().answer)


def _timing(session: Session, library: Path, row: InARow) -> Timing | Fault:
    """Checks the operator on the device, times it, and checks it again: a device that fails under load shows then."""
    places = [session.bind(library, row.source) for _ in range(PLACES)]
    before = max(row.error(bound.run()) for bound in places)
    if not before <= TOLERANCE:
        return Fault(_wrong(before))
    calls, sample_s = _sampling(places[0])
    affordable = max(_FEW_SAMPLES, min(_SAMPLES, round(_LONGEST_ROUND_S / sample_s)))

    def samples() -> list[tuple[float, float]]:
        found = []
        for bound in places:
            pace = session.pace()
            found += [(seconds / row.calls, pace) for seconds in bound.time(calls, affordable // PLACES)]
        return found

    rounds = max(1, round(_LONG_S / (affordable * sample_s)))
    timing = steadiest(samples, calls * row.calls, before, row.structure, rounds)
    after = max(row.error(bound.run()) for bound in places)
    return timing if after <= TOLERANCE else Fault(_wrong(after))


def _wrong(error: float) -> str:
    return f"it answers wrongly: relative error {error:.3g} against torch, at most {TOLERANCE:g} allowed"


def _sampling(bound: Bound) -> tuple[int, float]:
    """Calls that fill one sample, by the quickest of a few, and the seconds that they take."""
    call_s = max(min(bound.time(1, 3)), 1e-9)
    calls = max(1, round(_SAMPLE_S / call_s))
    return calls, calls * call_s


def _told(error: BaseException) -> str:
    """The line of TVM's message that says what happened, not where."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith("RPCError: Error caught from RPC call")]
    return told[0] if told else type(error).__name__


if __name__ == "__main__":
    main()
