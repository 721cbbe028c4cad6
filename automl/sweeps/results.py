"""What came of a sweep's cells, read from their run directories at any moment; nothing heavy is loaded."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from automl.run.directory import RunDirectory
from automl.run.status import run_status
from automl.sweeps.directory import SweepDirectory


@dataclass(frozen=True)
class CellResult:
    """What came of a cell; what is not known, or not yet, is None.

    Attributes:
        name: of the cell, and of its directory.
        values: the label of its value on each axis.
        state: of its run (`automl.run.directory.State`).
        stage: what it was last doing.
        reason: why it is not done.
        budget: the one that policies are compared by, as `summary.json` has it.
        accuracy: of the exported network on the test split.
        baseline: the same, of the uncompressed network.
        searched: its accuracy in the search, on the validation slice.
        latency_s: measured, of one image.
        seconds: that the run was driven so far.
    """

    name: str
    values: Mapping[str, str]
    state: str
    stage: str
    reason: str | None = None
    budget: Mapping[str, Any] | None = None
    accuracy: float | None = None
    baseline: float | None = None
    searched: float | None = None
    latency_s: float | None = None
    seconds: float = 0.0

    @property
    def done(self) -> bool:
        """Whether its run ended as it should."""
        return self.state == "done"


def cell_results(directory: SweepDirectory) -> list[CellResult]:
    """Of every cell, in the order of the grid.

    Raises:
        InputError: a file is damaged.
    """
    return [_result(name, values, directory.cell(name)) for name, values in directory.cells().items()]


def _result(name: str, values: Mapping[str, str], run: RunDirectory) -> CellResult:
    status, summary = run_status(run), run.summary()
    best, baseline = summary.get("best") or {}, summary.get("baseline") or {}
    return CellResult(
        name,
        values,
        status["state"],
        status["stage"],
        status["reason"],
        next(iter(status["budgets"]), None),
        best.get("accuracy"),
        baseline.get("accuracy"),
        best.get("search_accuracy"),
        best.get("latency_s"),
        status["wall_s"],
    )


def sweep_status(directory: SweepDirectory) -> dict[str, Any]:
    """State, counts of cells by state, and every cell, JSON-ready."""
    info, cells = directory.standing(), cell_results(directory)
    return {
        "directory": str(directory.path),
        "state": info.state,
        "reason": info.reason,
        "driver": directory.driver_text,
        "wall_s": info.wall_s,
        "created_at": info.created_at,
        "states": dict(Counter(cell.state for cell in cells)),
        "cells": [asdict(cell) for cell in cells],
    }
