"""What `trimtab search`, `resume`, `status`, `report` and `compare` do with a sweep."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from automl.cli_output import DONE, FAILED, complain, show
from automl.errors import InputError

if TYPE_CHECKING:
    from automl.sweeps.api import SweepResult
    from automl.sweeps.config import Sweep


def takes_parallel(parser: argparse.ArgumentParser) -> None:
    """The option of commands that run cells."""
    parser.add_argument(
        "--parallel",
        type=_count,
        metavar="N",
        help="of a sweep, the runs at once (default: as many as have CPUs for their evaluators)",
    )


def resumes(parser: argparse.ArgumentParser) -> None:
    """The options of `trimtab resume`."""
    takes_parallel(parser)
    parser.add_argument(
        "--take-over",
        action="store_true",
        help="drive it although another machine's process seems to, if that gives no sign of life for half a minute",
    )


def take_over(path: Path) -> None:
    """Free the lock of a run, or of a sweep and its runs, whose driver died elsewhere; see `automl.run.lock`."""
    from automl.run.lock import locks_of, take_over

    take_over(locks_of(path))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it is a whole number of at least 1, got {text!r}")
    return int(text)


def asked_for(options: argparse.Namespace) -> "Sweep | None":
    """The sweep that a config stands for; None where it is that of a run.

    Raises:
        InputError: the config cannot be read, or one of its cells cannot be run.
    """
    from automl.config import read_document
    from automl.sweeps.config import is_sweep, load_sweep

    document, _, _ = read_document(options.config, options.overrides)
    if is_sweep(document):
        return load_sweep(options.config, options.overrides)
    refuse_parallel(options)
    return None


def refuse_parallel(options: argparse.Namespace) -> None:
    """InputError where a single run is to be made of several at once."""
    if options.parallel is not None:
        raise InputError("--parallel is how many runs of a sweep there are at once; this is a single one, leave it out")


def search(sweep: "Sweep", options: argparse.Namespace) -> int:
    """Make every run of a sweep."""
    from automl.run.directory import next_free
    from automl.sweeps.directory import SweepDirectory

    out = options.out or next_free(Path("runs"), options.config.stem)
    SweepDirectory.check_free(out)

    from automl.progress import Progress
    from automl.sweeps.api import start_sweep

    with Progress() as progress:
        return _ended(start_sweep(sweep, out, progress, options.parallel))


def resume(path: Path, parallel: int | None) -> int:
    """Go on with a sweep."""
    from automl.progress import Progress
    from automl.sweeps.api import resume_sweep

    with Progress() as progress:
        return _ended(resume_sweep(path, progress, parallel))


def is_sweep(path: Path) -> bool:
    """Whether a path is the directory of a sweep."""
    from automl.sweeps.directory import SweepDirectory

    return SweepDirectory.is_at(path)


def refuse(path: Path) -> None:
    """InputError where a run is asked for and the path is the directory of a sweep."""
    if is_sweep(path):
        raise InputError(f"{str(path)!r} is a sweep, whose runs are the directories in it; give one of them")


def status(path: Path, as_json: bool) -> int:
    """Where a sweep stands, and each of its cells."""
    from automl.sweeps.directory import SweepDirectory
    from automl.sweeps.results import CellResult, sweep_status

    found = sweep_status(SweepDirectory.open(path))
    if as_json:
        print(json.dumps(found, indent=2))
        return DONE

    from automl.sweeps.tables import cell_table, counted

    reason = f" ({found['reason']})" if found["reason"] else ""
    driver = f" by {found['driver']}" if found["driver"] else ""
    title = f"{found['directory']}: {found['state']}{driver}{reason}; {counted(found['states'])}"
    show(cell_table([CellResult(**each) for each in found["cells"]], title))
    return DONE


def report(path: Path, picture: Path | None) -> int:
    """Write the report of a sweep again."""
    if picture is not None:
        raise InputError("--picture and --optuna are of a run: give the directory of a cell, or use `trimtab compare`")

    from automl.report.sweep import write_sweep_report

    print(write_sweep_report(path))
    return DONE


def _ended(result: "SweepResult") -> int:
    """Say what a sweep came to."""
    from automl.sweeps.directory import SweepDirectory
    from automl.sweeps.tables import cell_table

    if result.stopped:
        complain(f"the sweep is unfinished; go on with `trimtab resume {result.directory}`")
        return FAILED
    done = sum(cell.done for cell in result.cells)
    show(cell_table(result.cells, f"{done} of {len(result.cells)} cells are done"))
    print(f"report: {SweepDirectory(result.directory).report_file}")
    print(f"algorithms, ranked: trimtab compare {result.directory}")
    for cell in result.cells:
        if not cell.done:
            complain(f"cell {cell.name} is {cell.state}: {cell.reason}")
    return DONE if done == len(result.cells) else FAILED
