"""Telling where the Ray of a run is to be looked at, for as long as it runs."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from automl.cache import cache_dir
from automl.orchestration.ray_session import TOKEN, dashboard_url
from automl.progress import Progress
from automl.run.directory import RunDirectory, write_json
from automl.run.whereabouts import FILE, Whereabouts


@contextmanager
def announced(directory: RunDirectory, progress: Progress, scratch: Path) -> Iterator[None]:
    """Say where the Ray that this process is connected to is to be looked at.

    The run directory gets a `ray.json`, and Prometheus a file of targets, in the cache beside those of other runs.

    Args:
        directory: of the run.
        progress: is told of the dashboard, where there is one.
        scratch: directory of the session, see `automl.orchestration.ray_session.ray_session`.
    """
    import ray

    dashboard = dashboard_url()
    nodes: Any = ray.nodes()  # type: ignore[no-untyped-call]
    metrics = tuple(f"{each['NodeManagerAddress']}:{each['MetricsExportPort']}" for each in nodes if each["Alive"])
    token_file = str(scratch / TOKEN) if (scratch / TOKEN).exists() else None
    if dashboard is not None:
        asked = "the cluster's" if token_file is None else f"in {token_file}"
        progress.say(f"Ray's dashboard: {dashboard}; the token that it asks for is {asked}")
    found = Whereabouts(os.getpid(), platform.node(), dashboard, metrics, token_file)
    targets = _targets_file(directory)
    try:
        found.write(directory.path)
        write_json(targets, [{"targets": list(metrics), "labels": {"job": "trimtab"}}])
        yield
    finally:
        (directory.path / FILE).unlink(missing_ok=True)
        targets.unlink(missing_ok=True)


def _targets_file(directory: RunDirectory) -> Path:
    """The run's file among those that Prometheus reads (deploy/prometheus.yml); those of killed drivers are removed."""
    folder = cache_dir("metrics")
    for old in folder.glob(f"{platform.node()}-*.json"):
        pid = old.stem.rpartition("-")[2]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            old.unlink(missing_ok=True)
    return folder / f"{platform.node()}-{os.getpid()}.json"
