"""`trimtab export` and `verify`: what is left for deployment."""

import argparse
from pathlib import Path

from automl import cli_supernet, cli_sweep
from automl.cli_options import AddCommand
from automl.cli_output import DONE, FAILED, show
from automl.errors import InputError


def add_commands(add: AddCommand) -> None:
    """Add the commands to the parser."""
    add("export", _export, "export the best policy of a run again").add_argument("run", type=Path)
    verify = add("verify", _verify, "check an exported network: digests, outputs, accuracy")
    verify.add_argument("directory", type=Path)
    verify.add_argument(
        "--allow-code", action="store_true", help="import a model, data set or metric of the user's that it names"
    )
    verify.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="data_args",
        help="an argument of the data set, such as its path, which an export does not hold",
    )


def _export(options: argparse.Namespace) -> int:
    from automl.run.directory import RunDirectory

    cli_supernet.refuse(options.run)
    cli_sweep.refuse(options.run)
    directory = RunDirectory.open(options.run)

    from automl.api import export

    print(export(directory))
    return DONE


def _verify(options: argparse.Namespace) -> int:
    if not options.directory.is_dir():
        raise InputError(f"{str(options.directory)!r} is no directory of an exported network")

    from automl.export.verify import verify

    data_args = dict(_key_value(text) for text in options.data_args)
    report = verify(options.directory, allow_code=options.allow_code, data_args=data_args)
    show(report.table())
    return DONE if report.ok else FAILED


def _key_value(text: str) -> tuple[str, object]:
    from search_spaces.yaml_text import parse_yaml

    key, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"an argument of the data set has the form key=value, got {text!r}")
    return key, parse_yaml(value, f"--data {text}")
