"""The directory of a sweep: a run directory for every cell, and what the sweep is."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from automl.errors import InputError
from automl.run.directory import RunDirectory, write_json
from automl.sweeps.config import Sweep


class SweepDirectory(RunDirectory):
    """The directory of a sweep; its state is kept as that of a run. `config.yaml` is what was asked for."""

    INFO = "sweep.json"
    KIND = "sweep"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.cells_file = path / "cells.json"

    def begin(self, sweep: Sweep) -> None:
        """Note what the sweep is. The directories of its cells are there, so from now on it can be resumed.

        Raises:
            InputError: it cannot be written.
        """
        try:
            write_json(self.cells_file, [{"name": cell.name, "values": dict(cell.values)} for cell in sweep.cells])
        except OSError as error:
            raise InputError(f"the directory {str(self.path)!r} cannot be written: {error.strerror}") from None
        self.made_with(sweep.to_yaml())

    def cells(self) -> dict[str, Mapping[str, str]]:
        """The label of every cell's value on each axis, by the cell's name.

        Raises:
            InputError: the file is missing or damaged.
        """
        try:
            found = json.loads(self.cells_file.read_bytes())
            cells: dict[str, Mapping[str, str]] = {str(each["name"]): dict(each["values"]) for each in found}
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise InputError(f"{str(self.cells_file)!r} is damaged: {error}") from None
        if foreign := [name for name in cells if Path(name).name != name]:
            raise InputError(f"{str(self.cells_file)!r} is damaged: {foreign[0]!r} is no name of a directory")
        return cells

    def cell(self, name: str) -> RunDirectory:
        """The run directory of a cell."""
        return RunDirectory(self.path / name)

    def runs(self) -> Sequence[RunDirectory]:
        """The run directories of all cells."""
        return [self.cell(name) for name in self.cells()]
