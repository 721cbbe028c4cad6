"""A sweep from its config to the runs of all its cells, and from where it was stopped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from automl.api import create_run
from automl.errors import RunStoppedError
from automl.orchestration.address import at_address
from automl.outlines import unreachable
from automl.progress import Progress
from automl.run.directory import ENDED, RunClock, RunDirectory, make_importable, next_free
from automl.run.driving import driving, show_runs
from automl.run.processes import drive, fitting
from automl.signals import StopSignal
from automl.sweeps.config import Sweep, load_sweep
from automl.sweeps.directory import SweepDirectory
from automl.sweeps.results import CellResult, cell_results


@dataclass(frozen=True)
class SweepResult:
    """What a sweep came to.

    Attributes:
        directory: of the sweep.
        cells: what came of each, in the order of the grid.
        stopped: whether it was told to stop; it can be resumed.
    """

    directory: Path
    cells: Sequence[CellResult]
    stopped: bool = False


def sweep(
    config: Sweep | str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    parallel: int | None = None,
    *,
    address: str | None = None,
) -> SweepResult:
    """Run a grid of searches as one experiment, as the config's section `sweep` says; quietly.

    Args:
        config: a `Sweep`, a mapping, or the path of a YAML file.
        out: its directory, which must not exist or be empty; by default the next free `runs/sweep-<n>`.
        parallel: cells that are run at once; by default as many as have CPUs for their evaluators.
        address: of a Ray cluster, see `automl.search`.

    Raises:
        InputError: the config of a cell cannot work; nothing has been written.
        TrimtabError: the sweep failed, not only a cell; `trimtab resume DIR` goes on with it.
    """
    checked = config if isinstance(config, Sweep) else load_sweep(config)
    name = Path(config).stem if isinstance(config, str | Path) else "sweep"
    directory = Path(out) if out is not None else next_free(Path("runs"), name)
    with at_address(address), Progress(quiet=True) as progress:
        return start_sweep(checked, directory, progress, parallel)


def start_sweep(sweep: Sweep, out: Path, progress: Progress, parallel: int | None = None) -> SweepResult:
    """A new sweep. Every cell is checked before the directory is made; see `sweep`."""
    SweepDirectory.check_free(out)
    progress.stage(f"Sweep: {len(sweep.cells)} cells, checked before anything is made")
    left_out = unreachable("cell", {cell.name: cell.config for cell in sweep.cells}, progress)
    directory = SweepDirectory(out)
    for cell in sweep.cells:
        run = create_run(directory.cell(cell.name).path, cell.config)
        if cell.name in left_out:
            run.write_info(replace(run.info(), state="infeasible", stage="check", reason=left_out[cell.name]))
    directory.begin(sweep)
    return _drive(directory, progress, parallel)


def resume_sweep(path: Path, progress: Progress, parallel: int | None = None) -> SweepResult:
    """Go on with a sweep that was stopped or killed. Cells that are done stay as they are; those that failed are tried
    again. Raises as `sweep`."""
    directory = SweepDirectory.open(path)
    make_importable(directory.info().working_directory)
    if directory.info().state == "done" and directory.report_file.exists():
        return SweepResult(directory.path, cell_results(directory))
    return _drive(directory, progress, parallel)


def _drive(directory: SweepDirectory, progress: Progress, parallel: int | None) -> SweepResult:
    """Drive a sweep to its end."""
    from automl.report.sweep import write_sweep_report

    try:
        with driving(directory, progress) as (clock, stop):
            _run_cells(directory, progress, parallel, clock, stop)
            cells = cell_results(directory)
            if failed := [cell.name for cell in cells if cell.state not in ENDED]:
                clock.set("failed", reason=f"{len(failed)} of {len(cells)} cells did not come to their end")
            else:
                clock.set("done", "done")
            write_sweep_report(directory.path)
    except RunStoppedError:
        return SweepResult(directory.path, cell_results(directory), stopped=True)
    return SweepResult(directory.path, cells)


def _run_cells(
    directory: SweepDirectory, progress: Progress, parallel: int | None, clock: RunClock, stop: StopSignal
) -> None:
    """Run the cells that have not ended, each in a process of its own."""
    every = directory.runs()
    runs = [run for run in every if run.info().state not in ENDED]
    if not runs:
        return
    clock.set("running", "cells")
    progress.stage(f"Cells: {len(runs)} of {len(every)} to run")
    stop.check()

    def watch(running: Sequence[RunDirectory]) -> None:
        show_runs(running, progress)
        clock.beat()

    drive(runs, parallel or fitting(run.config() for run in runs), stop, watch)
