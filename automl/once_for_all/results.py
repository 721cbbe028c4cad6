"""What came of a supernet's devices, read from their run directories at any moment."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from automl.once_for_all.directory import SupernetDirectory
from automl.run.directory import RunDirectory
from automl.run.status import run_status

WAITING = "waiting"


@dataclass(frozen=True)
class DeviceResult:
    """What came of a device; what is not known, or not yet, is None.

    Attributes:
        name: of the device.
        state: of its run (`automl.run.directory.State`), or "waiting" before there is one.
        reason: why it is not done.
        budget: the one that policies are compared by, as `summary.json` has it: metric, limit, and what the
            "baseline", the largest sub-network, and the "best" take of it.
        before: the found sub-network's test accuracy by the supernet's weights.
        after: after fine-tuning.
        alone: of the same architecture trained from scratch, for `alone_epochs`.
        searched: its accuracy in the search, on the validation slice.
        latency_s: measured, of one image.
        seconds: that the run took so far.
    """

    name: str
    state: str = WAITING
    reason: str | None = None
    budget: Mapping[str, Any] | None = None
    before: float | None = None
    after: float | None = None
    alone: float | None = None
    alone_epochs: int | None = None
    searched: float | None = None
    latency_s: float | None = None
    seconds: float | None = None

    @property
    def done(self) -> bool:
        """Whether its run ended as it should."""
        return self.state == "done"


def device_results(directory: SupernetDirectory) -> list[DeviceResult]:
    """Of every device, in the config's order.

    Raises:
        InputError: a file is damaged.
    """
    found = []
    for name in directory.config().devices:
        run = directory.device(name)
        found.append(_result(name, run) if run.info_file.is_file() else DeviceResult(name))
    return found


def _result(name: str, run: RunDirectory) -> DeviceResult:
    status, summary = run_status(run), run.summary()
    best, alone = summary.get("best") or {}, summary.get("from_scratch") or {}
    return DeviceResult(
        name,
        status["state"],
        status["reason"],
        next(iter(status["budgets"]), None),
        best.get("accuracy_before"),
        best.get("accuracy"),
        alone.get("accuracy"),
        alone.get("fine_tune_epochs"),
        best.get("search_accuracy"),
        best.get("latency_s"),
        status["wall_s"],
    )
