"""Options that several commands share, and how a module adds its commands."""

import argparse
from collections.abc import Callable
from pathlib import Path

AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
"""Adds a command of that name: the function that runs it, and what it does."""


def takes_config(parser: argparse.ArgumentParser, *, required: bool = True, help: str = "YAML file") -> None:
    """A config, and values of it that are changed."""
    parser.add_argument("config", type=Path, nargs=None if required else "?", help=help)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.SUB=VALUE",
        dest="overrides",
        help="change a value of the config (may be given several times)",
    )
