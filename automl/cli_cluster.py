"""The options of commands that run on a Ray cluster, and of those that begin with a copy on shared storage."""

import argparse
from pathlib import Path

from automl.errors import InputError


def takes_address(parser: argparse.ArgumentParser) -> None:
    """The option that names a cluster; it counts wherever a command opens a session of Ray."""
    parser.add_argument(
        "--address",
        metavar="ADDRESS",
        dest="cluster",
        help="run on the Ray cluster at host:port, or 'auto' for the one that this machine is a node of (default: "
        "$RAY_ADDRESS, or else a Ray of its own)",
    )


def takes_copy(parser: argparse.ArgumentParser) -> None:
    """The run to go on with, which may be a copy."""
    parser.add_argument("run", metavar="RUN", help="run directory, or the URI or directory of a run's copy")
    parser.add_argument("--out", type=Path, metavar="DIR", help="run directory for a copy (default: runs/<name>-<n>)")


def here(run: str, out: Path | None) -> Path:
    """The run directory that a command is to work in: the one it names, or what is fetched of a copy.

    Raises:
        InputError: there is no copy, it is damaged, or `out` is taken.
    """
    from automl.run.copies import Copy, is_copy
    from automl.run.directory import RunDirectory, next_free

    if not is_copy(run):
        if out is not None:
            raise InputError(f"a run is resumed where it is, and {run!r} is no copy of one; leave out --out")
        return Path(run)
    copy = Copy(run if "://" in run else str(Path(run).resolve()))
    directory = out or next_free(Path("runs"), copy.name)
    RunDirectory.check_free(directory)
    copy.fetch(directory)
    print(f"fetched: {directory}")
    return directory
