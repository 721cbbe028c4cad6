"""MLflow: a run of ours is a parent run with the config as its parameters, and a child run of each search."""

import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from automl.config import Config
from automl.config_sections import MlflowSection
from automl.loggers.steps import Step
from automl.run.directory import write_json
from automl.run.finalists import NAMES

FILE = "mlflow.json"
ID, SEARCH = "trimtab.id", "trimtab.search"
"""Tags by which runs are found again."""

BATCH, PARAMS, PARAM_CHARACTERS = 1000, 100, 6000
"""MLflow's limits: metrics and parameters of a request, and how long the latter may be."""

PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""A server that does not answer is asked again later anyhow."""

STATUS = {"done": "FINISHED", "infeasible": "FINISHED", "failed": "FAILED"}
Point = tuple[str, int]
"""A metric's name and a step."""


class MlflowLogger:
    """Keeps what was not delivered yet, and compares with the server before it delivers for the first time or again.

    The runs are found by tags that hold an id, which stands in the run directory before there are any. So a session
    that was killed at whatever moment, and a request that was or was not carried out, leave nothing twice or out.

    Args:
        run: the run directory.
        config: of the run.
        where: the server and the experiment.
    """

    name = "MLflow"

    def __init__(self, run: Path, config: Config, where: MlflowSection) -> None:
        self._run = run.resolve()
        self._config = config
        self._where = where
        self._client: Any = None
        self._experiment = ""
        self._ids: dict[str, str] = {}  # search -> run; the parent's has no name
        self._known: dict[str, dict[Point, float]] = {}
        self._waiting: dict[str, dict[Point, tuple[float, float]]] = {}  # search -> point -> value, time
        self._said: dict[str, dict[Point, float]] = {}

    def log(self, search: str, steps: Sequence[Step], anew: bool) -> None:
        """See `automl.loggers.base.Logger`."""
        if anew:
            for each in (self._waiting, self._said, self._known):
                each.pop(search, None)
        waiting, said = self._waiting.setdefault(search, {}), self._said.setdefault(search, {})
        for step in steps:
            for key, value in step.values.items():
                waiting[key, step.number] = (value, step.time)
                said[key, step.number] = value

    def flush(self) -> None:
        """See `automl.loggers.base.Logger`."""
        try:
            self._connect()
            for search, waiting in self._waiting.items():
                self._deliver(search, waiting)
        except Exception:
            self._client = None  # whether the last request was carried out is not known: what is there is read again
            raise

    def close(self, state: str, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        """See `automl.loggers.base.Logger`."""
        self.flush()
        parent, now = self._ids[""], time.time()
        held = self._client.get_run(parent).data.metrics
        figures = {key: value for key, value in _figures(summary) if held.get(key) != value}
        self._put(parent, {(key, 0): (value, now) for key, value in figures.items()})
        for path in files:
            self._client.log_artifact(parent, str(path))
        for run in self._ids.values():
            self._client.set_terminated(run, STATUS.get(state, "KILLED"))

    def _connect(self) -> None:
        """Find the runs, or make them, and read what they hold."""
        if self._client is not None:
            return
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient(tracking_uri=self._where.uri)
        found = self._client.get_experiment_by_name(self._where.experiment)
        self._experiment = (
            self._client.create_experiment(self._where.experiment) if found is None else found.experiment_id
        )
        self._ids, self._known = {}, {}
        parent, _ = self._run_of("")
        held = self._client.get_run(parent).data.params
        params = [(key, str(value)) for key, value in _flat(self._config.model_dump(mode="json")) if key not in held]
        for some in _parts([Param(key, value[:PARAM_CHARACTERS]) for key, value in params], PARAMS):
            self._client.log_batch(parent, params=some)

    def _run_of(self, search: str) -> tuple[str, bool]:
        """The run of a search, or with "" of ours, and whether it was made just now."""
        if search in self._ids:
            return self._ids[search], False
        identity = self._identity()
        asked = f"tags.`{ID}` = '{identity}' and tags.`{SEARCH}` = '{search}'"
        found = self._client.search_runs([self._experiment], asked, max_results=1)
        if found:
            run = found[0].info.run_id
            self._client.update_run(run, status="RUNNING")
        else:
            tags = {ID: identity, SEARCH: search}
            if search:
                tags["mlflow.parentRunId"] = self._ids[""]
            name = search or self._run.name
            run = self._client.create_run(self._experiment, tags=tags, run_name=name).info.run_id
        self._ids[search] = run
        return run, not found

    def _deliver(self, search: str, waiting: dict[Point, tuple[float, float]]) -> None:
        """Have a search's run hold what waits; it waits no more."""
        if search not in self._known:
            self._known[search] = self._held(search)
        known = self._known[search]
        new = {point: each for point, each in waiting.items() if point not in known}
        self._put(self._run_of(search)[0], new)
        known.update((point, value) for point, (value, _) in new.items())
        waiting.clear()

    def _held(self, search: str) -> dict[Point, float]:
        """What a search's run holds. Where that differs from what is on record now, the run is made anew.

        It does where a resumed search forgot failures and tried again.
        """
        said = self._said[search]
        run, made = self._run_of(search)
        if made:
            return {}
        keys = self._client.get_run(run).data.metrics
        held = {(key, each.step): each.value for key in keys for each in self._client.get_metric_history(run, key)}
        if all(said.get(point, value) == value for point, value in held.items()):
            return held
        self._client.delete_run(run)
        del self._ids[search]
        self._run_of(search)
        for point, value in said.items():
            self._waiting[search].setdefault(point, (value, time.time()))
        return {}

    def _put(self, run: str, points: Mapping[Point, tuple[float, float]]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(key, value, round(1e3 * at), step) for (key, step), (value, at) in points.items()]
        for some in _parts(metrics, BATCH):
            self._client.log_batch(run, metrics=some)

    def _identity(self) -> str:
        """What the runs are found by: of this run directory, wherever it is copied or moved to."""
        path = self._run / FILE
        try:
            return str(json.loads(path.read_bytes())["id"])
        except FileNotFoundError:
            found = secrets.token_hex(16)
            write_json(path, {"id": found})
            return found


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of nested mappings, by their keys joined by dots."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}".lstrip("."))
    else:
        yield key, value


def _figures(summary: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Numbers of the networks that a summary compares, such as "best/accuracy", and the seconds that the run took."""
    for name, value in _flat({key: summary.get(key) for key in (*NAMES, "wall_s")}):
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield name.replace(".", "/"), float(value)
