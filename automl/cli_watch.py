"""`trimtab watch` and `trimtab dashboard`: looking on while a run runs."""

import argparse
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automl import cli_sweep
from automl.cli_options import AddCommand
from automl.cli_output import DONE, FAILED, complain, show
from automl.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from automl.run.directory import RunDirectory

DASHBOARD = "start Ray's dashboard with it, on this machine alone (as search.dashboard: true does)"
TRIES = 3
"""A file that cannot be read may be about to be replaced; a run that stays unreadable is given up."""

Look = Callable[[], tuple["RenderableType", bool]]
"""What is to be shown now, and whether it is the last."""


def takes_dashboard(parser: argparse.ArgumentParser) -> None:
    """The option of a command that starts a run; it sets a key of the config."""
    parser.add_argument(
        "--dashboard", action="append_const", const="search.dashboard=true", dest="overrides", help=DASHBOARD
    )


def add_commands(add: AddCommand) -> None:
    """Add the commands to the parser."""
    looking = add("watch", watch, "look on while a run runs, here or as a job of a cluster")
    looking.add_argument("run", type=Path, nargs="?", help="directory of a run or of a supernet")
    looking.add_argument(
        "--job", metavar="NAME", help="a job of a Ray cluster in its place, as `trimtab jobs` lists it"
    )
    looking.add_argument("--address", metavar="URL", help="of its dashboard (default: RAY_ADDRESS, or this machine's)")
    looking.add_argument("--once", action="store_true", help="show it once, and leave")
    looking.add_argument("--every", type=float, default=2.0, metavar="S", help="seconds between two looks (default: 2)")
    places = add("dashboard", dashboard, "where a run's dashboard, metrics and logs are")
    places.add_argument("run", type=Path, nargs="?", help="directory of a run; without one, what serves all runs")
    places.add_argument("--open", action="store_true", help="open Ray's dashboard of the run in the browser")


def watch(options: argparse.Namespace) -> int:
    """Show a run until nobody drives it any more."""
    if not 0.1 <= options.every <= 3600.0:
        raise InputError(f"--every is between 0.1 and 3600 seconds, got {options.every:g}")
    if (options.run is None) == (options.job is None):
        raise InputError("one of a run's directory and --job is given")
    if options.address is not None and options.job is None:
        raise InputError("--address is that of a cluster's dashboard; name the job there by --job")
    look = _look(options.run) if options.job is None else _job_look(options.address, options.job)
    if options.once:
        show(look()[0])
        return DONE

    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    shown, over = look()
    if not console.is_terminal:
        return _watch_plain(look, options.every)
    with Live(shown, console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while not over:
            time.sleep(options.every)
            shown, over = _patient(look)
            live.update(shown, refresh=True)
    return DONE


def _watch_plain(look: Look, every: float) -> int:
    """Where no terminal is, what has changed is printed below what there was."""
    from rich.console import Console

    before = ""
    while True:
        shown, over = _patient(look)
        console = Console(highlight=False, width=160)
        with console.capture() as captured:
            console.print(shown)
        if (text := captured.get()) != before:
            print(text, flush=True)
            before = text
        if over:
            return DONE
        time.sleep(every)


def _patient(look: Look) -> tuple["RenderableType", bool]:
    for _ in range(TRIES - 1):
        try:
            return look()
        except InputError:
            time.sleep(0.5)
    return look()


def _look(path: Path) -> Look:
    from automl.once_for_all.directory import SupernetDirectory
    from automl.run.directory import RunDirectory
    from automl.run.watching import RunWatch
    from automl.watch_tables import run_tables

    if cli_sweep.is_sweep(path):
        raise InputError(f"{str(path)!r} is a sweep: `trimtab status {path}` shows it whole, watch one of its cells")
    if SupernetDirectory.is_at(path):
        return _supernet_look(SupernetDirectory.open(path))
    watched = RunWatch(RunDirectory.open(path))

    def look() -> tuple["RenderableType", bool]:
        view = watched.look()
        return run_tables(view), view.over

    return look


def _supernet_look(directory: Any) -> Look:
    """A supernet: how far it is, and each of its devices that is being searched for."""
    from rich.console import Group

    from automl.once_for_all.results import device_results
    from automl.once_for_all.status import supernet_status
    from automl.once_for_all.tables import device_table, supernet_table
    from automl.run.watching import RunWatch
    from automl.watch_tables import run_tables

    runs: dict[str, RunWatch] = {}

    def look() -> tuple["RenderableType", bool]:
        status, devices = supernet_status(directory), device_results(directory)
        running = [each.name for each in devices if each.state == "running"]
        views = [runs.setdefault(name, RunWatch(directory.device(name))).look() for name in running]
        parts = [supernet_table(status), *([device_table(devices)] if devices else [])]
        return Group(*parts, *map(run_tables, views)), status["state"] != "running"

    return look


def _job_look(address: str | None, name: str) -> Look:
    """A job of a cluster, by what it has written so far."""
    from automl.orchestration.jobs import Cluster, address_of
    from automl.progress import read_plain
    from automl.watch_tables import job_tables

    cluster = Cluster(address_of(address))

    def look() -> tuple["RenderableType", bool]:
        job = cluster.job(name)
        stage, tasks = read_plain(cluster.logs(name))
        title = f"{job.name}: {job.state.lower()}, driven for {job.seconds:.0f} s, run directory {job.run} there"
        return job_tables(title, stage, tasks, job.message), job.ended

    return look


def dashboard(options: argparse.Namespace) -> int:
    """Say where everything is that shows a run."""
    from automl.places import deploy_folder, places

    if options.run is None:
        if options.open:
            raise InputError("--open opens the dashboard of a run; name its directory")
        show(places(None, deploy_folder()))
        return DONE

    from automl.run.directory import RunDirectory
    from automl.run.whereabouts import Whereabouts

    directory = RunDirectory.open(options.run)
    where = Whereabouts.read(directory.path) if directory.driven() else None
    show(places(directory, deploy_folder(), where))
    if not options.open:
        return DONE
    if where is None or where.dashboard is None:
        complain("there is no dashboard to open: start or resume the run with --dashboard")
        return FAILED
    if not webbrowser.open(where.dashboard):
        complain(f"no browser was found here; open {where.dashboard} in one")
        return FAILED
    return DONE


def study(directory: "RunDirectory", path: Path) -> int:
    """Write the searches of a run for optuna-dashboard."""
    from automl.run.study import write_study

    print(write_study(directory, path))
    return DONE
