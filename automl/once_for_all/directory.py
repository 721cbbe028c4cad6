"""The directory of a supernet: its checkpoint, its samples, and a run directory for every device."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter

from automl.config import load_config
from automl.errors import InputError
from automl.once_for_all.config import SupernetConfig
from automl.run.directory import RunDirectory, write_json

Stage = Literal["training", "samples", "predictor"]
Content = TypeVar("Content", list[dict[str, Any]], dict[str, Any], dict[str, float])


class SupernetDirectory(RunDirectory):
    """The directory of a supernet; its state is kept as that of a run."""

    INFO = "supernet.json"
    KIND = "supernet"
    MADE_BY = "trimtab supernet"
    RESUME = "trimtab supernet {} --resume"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.baseline_file = path / "supernet.safetensors"
        self.training_file = path / "training.json"
        self.samples_file = path / "samples.json"
        self.predictor_file = path / "predictor.json"
        self.seconds_file = path / "seconds.json"
        self.store_file = path / "samples.sqlite"
        self.devices = path / "devices"

    def config(self) -> SupernetConfig:
        """The resolved config that it was started with."""
        return load_config(self.config_file, kind=SupernetConfig)

    def device(self, name: str) -> RunDirectory:
        """The run directory of a device, made or not."""
        return RunDirectory(self.devices / name)

    def training(self) -> list[dict[str, Any]]:
        """What is known of each epoch, of the largest network alone and then of the supernet."""
        return self._json(self.training_file, list[dict[str, Any]])

    def predictor(self) -> dict[str, Any]:
        """What is known of the predictor; empty before there is one."""
        return self._json(self.predictor_file, dict[str, Any])

    def seconds(self) -> dict[str, float]:
        """What each stage took so far, over all resumes."""
        return self._json(self.seconds_file, dict[str, float])

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Adds the seconds of the block to those of a stage."""
        before, started = self.seconds(), time.monotonic()
        try:
            yield
        finally:
            spent = round(before.get(stage, 0.0) + time.monotonic() - started, 3)
            write_json(self.seconds_file, {**before, stage: spent})

    @staticmethod
    def _json(path: Path, kind: type[Content]) -> Content:
        """What a file holds, of that type; empty where there is none."""
        try:
            return TypeAdapter(kind).validate_python(json.loads(path.read_bytes()), strict=True)
        except FileNotFoundError:
            return kind()
        except (OSError, ValueError, RecursionError) as error:  # pydantic's is a ValueError
            reason = str(error).splitlines()[0]
            raise InputError(f"{str(path)!r} is damaged: {reason}; remove it, and it is made anew") from None
