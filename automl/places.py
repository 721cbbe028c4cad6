"""What shows a run, and where it is or how it is started: what `trimtab dashboard` prints."""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table
from rich.text import Text

from automl.cache import cache_dir
from automl.run.directory import RunDirectory
from automl.run.whereabouts import Whereabouts

_CHECKOUT = Path(__file__).resolve().parents[1] / "deploy"
_INSTALLED = Path(sys.prefix) / "share" / "trimtab" / "deploy"


def deploy_folder() -> Path:
    """Where the files for Prometheus and Grafana lie."""
    return _CHECKOUT if _CHECKOUT.is_dir() else _INSTALLED


def places(directory: RunDirectory | None, deploy: Path, where: Whereabouts | None = None) -> Table:
    """What shows a run, a line each.

    Args:
        directory: of the run; None for what serves all runs.
        deploy: see `deploy_folder`.
        where: the Ray of the run, while it is driven.
    """
    table = Table(title=None if directory is None else str(directory.path), show_header=False)
    table.add_column("what", no_wrap=True)
    table.add_column("where", overflow="fold")
    if directory is not None:
        for name, value in (*_ray(where), *_files(directory)):
            table.add_row(name, Text(value))
    compose, targets = deploy / "compose.yaml", cache_dir("metrics")
    table.add_row(
        "Prometheus and Grafana", Text(f"TRIMTAB_METRICS={_quoted(targets)} docker compose -f {_quoted(compose)} up")
    )
    table.add_row("their files", Text(str(deploy)))
    table.add_row("metrics ports of running runs", Text(f"{targets}, a file each"))
    return table


def _ray(where: Whereabouts | None) -> Iterator[tuple[str, str]]:
    if where is None:
        yield "Ray", "nobody drives the run now"
        return
    yield "driven by", f"process {where.pid} on {where.host}"
    yield "Ray's dashboard", where.dashboard or "none; start or resume the run with --dashboard"
    if where.dashboard is not None:
        token = where.token_file
        yield "its token", "the cluster's" if token is None else f"in {token}, a file that only you can read"
    yield "metrics", ", ".join(f"http://{address}/metrics" for address in where.metrics)


def _files(directory: RunDirectory) -> Iterator[tuple[str, str]]:
    path, loggers = directory.path, directory.config().loggers
    yield "in the terminal", f"trimtab watch {_quoted(path)}"
    if loggers.tensorboard:
        yield "TensorBoard", f"tensorboard --logdir {_quoted(path / 'tensorboard')}"
    if loggers.mlflow is not None:
        yield "MLflow", f"experiment {loggers.mlflow.experiment!r} at {loggers.mlflow.uri}"
    study = path / "study.log"
    yield (
        "optuna-dashboard",
        f"trimtab report {_quoted(path)} --optuna {_quoted(study)} && optuna-dashboard {_quoted(study)}",
    )
    if directory.report_file.exists():
        yield "report", str(directory.report_file)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
