"""`trimtab supernet`, and what `trimtab status` and `report` say of its directory."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from automl.cli_output import DONE, FAILED, complain, show
from automl.errors import InputError

if TYPE_CHECKING:
    from automl.once_for_all.api import SupernetResult


def takes_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command, beside the config's."""
    parser.add_argument("--out", type=Path, metavar="DIR", help="its directory (default: runs/<config>-<n>)")
    parser.add_argument("--resume", action="store_true", help="go on with the supernet whose directory CONFIG is")
    parser.add_argument(
        "--parallel",
        type=int,
        metavar="N",
        help="devices that are searched for at once (default: as many as have CPUs for their evaluators)",
    )


def supernet(options: argparse.Namespace) -> int:
    """Train a supernet, then search for every device; or go on with that."""
    from automl.config import load_config
    from automl.once_for_all.config import SupernetConfig
    from automl.once_for_all.directory import SupernetDirectory
    from automl.run.directory import next_free

    if options.parallel is not None and options.parallel < 1:
        raise InputError(f"--parallel is at least 1, got {options.parallel}")
    if options.resume:
        if options.out is not None or options.overrides:
            raise InputError("a supernet is resumed as it was started: leave out --out and --set")
        SupernetDirectory.open(options.config)
    else:
        config = load_config(options.config, options.overrides, kind=SupernetConfig)
        out = options.out or next_free(Path("runs"), options.config.stem)
        SupernetDirectory.check_free(out)

    from automl.once_for_all.api import resume_supernet, start_supernet
    from automl.progress import Progress

    with Progress() as progress:
        if options.resume:
            result = resume_supernet(options.config, progress, options.parallel)
        else:
            result = start_supernet(config, out, progress, options.parallel)
    return _ended(result)


def refuse(path: Path) -> None:
    """InputError where a run is asked for and the path is the directory of a supernet."""
    from automl.once_for_all.directory import SupernetDirectory

    if SupernetDirectory.is_at(path):
        raise InputError(
            f"{str(path)!r} is a supernet: `{SupernetDirectory.RESUME.format(path)}` goes on with it, and the runs "
            f"of its devices are in {str(path / 'devices')!r}"
        )


def status(path: Path, as_json: bool) -> int:
    """Where a supernet stands, and each of its devices."""
    from automl.once_for_all.directory import SupernetDirectory
    from automl.once_for_all.status import supernet_status

    directory = SupernetDirectory.open(path)
    found = supernet_status(directory)
    if as_json:
        print(json.dumps(found, indent=2))
        return DONE

    from automl.once_for_all.results import device_results
    from automl.once_for_all.tables import device_table, supernet_table

    devices = device_results(directory)
    show(supernet_table(found), *([device_table(devices)] if devices else []))
    return DONE


def report(path: Path, picture: Path | None) -> int:
    """Write the report of a supernet again."""
    if picture is not None:
        raise InputError(
            f"--picture and --optuna are of a run; give them the directory of a device in {str(path / 'devices')!r}"
        )

    from automl.report.supernet import write_supernet_report

    print(write_supernet_report(path))
    return DONE


def _ended(result: "SupernetResult") -> int:
    """Say what a supernet came to."""
    from automl.once_for_all.directory import SupernetDirectory
    from automl.once_for_all.tables import device_table, predictor_text

    directory = SupernetDirectory(result.directory)
    if result.stopped:
        complain(f"the supernet is unfinished; go on with `{directory.resume_command}`")
        return FAILED
    if result.devices:
        show(device_table(result.devices))
    if (text := predictor_text(directory.predictor())) is not None:
        print(f"predictor: {text}")
    print(f"supernet: {directory.baseline_file}")
    print(f"report: {directory.report_file}")
    for device in result.devices:
        if not device.done:
            complain(f"device {device.name} is {device.state}: {device.reason}")
    return DONE if all(device.done for device in result.devices) else FAILED
