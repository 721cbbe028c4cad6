"""Ray for the length of a run: a local one of its own, or a cluster that runs already.

A local one is loopback only, quiet, bounded, and gone afterwards. A cluster is what `RAY_ADDRESS` names, as for Ray
itself; it is left running.
"""

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import ceil
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from automl.config import Config
from automl.config_sections import AUTO, SearchSection
from automl.errors import InputError, TrimtabError
from automl.orchestration.address import LOCAL, cluster_address, environment
from automl.plugins import is_reference

OBJECT_STORE_BYTES = 256 * 2**20
PREFIX = "trimtab-ray-"
ALIVE = ".alive"
TOKEN = "token"
ORPHAN_S = 120.0
ANSWER_S = 10.0
"""How long a cluster's head may take to answer."""
EXCLUDED = [".git", ".venv", "venv", "runs", "__pycache__", ".cache", ".mypy_cache", ".ruff_cache", ".pytest_cache"]
"""What stays behind when a directory of a user's own modules is sent to a cluster's nodes."""
LIBRARIES = ("torchvision:", "timm:")

_TOKEN = secrets.token_hex(32)
"""Guards a local Ray's ports; random, so nothing has to lie in the user's home. A process reads its token once, so all
sessions of a process have the same one. A cluster's is the user's own."""

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TVM_NUM_THREADS"), "1")
"""A worker is one thread: parallelism comes from their number."""

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no TensorBoard, CSV and JSON files: the record is our store
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
_OWN = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # bind to loopback, not to every interface
    "RAY_AUTH_TOKEN": _TOKEN,
}


def cpus_of(how: SearchSection, cpus: int | None = None) -> int:
    """CPU slots that the evaluators of a config need; `cpus` are there, or those of this machine."""
    if how.evaluators == AUTO:
        return max(cpus or len(os.sched_getaffinity(0)), ceil(how.evaluator.cpus))
    return max(1, ceil(int(how.evaluators) * how.evaluator.cpus))


def cpus_at_hand() -> int:
    """CPU slots of the cluster that `cluster_address` names, as many as it has now; else those of this machine.

    Raises:
        TrimtabError: the cluster does not take us.
    """
    if cluster_address() is None:
        return len(os.sched_getaffinity(0))
    with ray_session(1):
        import ray

        return int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]


def modules_of(config: Config, folder: str) -> str | None:
    """The directory of a user's own modules where a config names some; None where it names none."""
    names = (config.model.name, config.data.name, config.metric or "")
    own = any(is_reference(name) and not name.startswith(LIBRARIES) for name in names)
    return str(Path(folder).resolve()) if own else None


@contextmanager
def ray_session(cpus: int, *, dashboard: bool = False, modules: str | None = None) -> Iterator[Path]:
    """Start Ray with that many CPU slots and all GPUs, or connect to the cluster that `cluster_address` names.

    With a dashboard, the token that it asks for stands in a file `TOKEN` there, which its owner alone can read.

    A Ray that runs in this process already is used as it is, and left running.

    Args:
        cpus: of a local Ray.
        dashboard: of a local Ray.
        modules: directory of a user's own modules, sent to the nodes of a cluster; None where there are none.

    Yields:
        A temporary directory on this machine that lives as long.

    Raises:
        TrimtabError: Ray does not start, or the cluster does not take us.
    """
    address = cluster_address()
    variables = {**_QUIET, **THREADS, **(_OWN if address is None else {})}
    with _temporary_directory() as temporary, environment(variables):
        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)
        if ray.is_initialized():
            yield temporary
            return
        with _signals_kept():
            if address is None:
                _start(cpus, temporary / "ray", dashboard)
            else:
                _connect(address, modules)
        try:
            if dashboard and address is None:
                _write_private(temporary / TOKEN, _TOKEN)
            yield temporary
        finally:
            with _signals_kept():
                ray.shutdown()


def dashboard_url() -> str | None:
    """Of the Ray that this process is connected to; None where it has no dashboard."""
    import ray

    with _signals_kept():  # how Ray, which runs, is asked where it is
        context: Any = ray.init(ignore_reinit_error=True, configure_logging=False, logging_level=logging.ERROR)
    return f"http://{context.dashboard_url}" if context.dashboard_url else None


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Handle signals afterwards as before.

    Ray takes SIGTERM for itself whenever it is initialised, running or not, and nobody has it when it has ended.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _start(cpus: int, folder: Path, dashboard: bool) -> None:
    import ray
    import torch
    from ray._private import ray_constants

    # Where Ray was imported before our environment was set, it would take 127.0.0.1 for any address of this machine.
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        ray.init(
            address=LOCAL,
            num_cpus=cpus,
            num_gpus=torch.cuda.device_count(),  # as the evaluators count them
            _node_ip_address="127.0.0.1",
            include_dashboard=dashboard,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(folder),
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise TrimtabError(f"Ray does not start: {_one_line(error)}") from error


def _connect(address: str, modules: str | None) -> None:
    import ray
    from ray.exceptions import AuthenticationError

    _check_answer(address)
    environment = None
    # a job's own directory is on all nodes already
    if modules is not None and "working_dir" not in os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", ""):
        environment = {"working_dir": modules, "excludes": EXCLUDED}
    try:
        ray.init(
            address=address,
            runtime_env=environment,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    except (AuthenticationError, RuntimeError, ValueError, OSError) as error:
        raise TrimtabError(_refusal(address, error, modules)) from error


def _check_answer(address: str) -> None:
    """TrimtabError where nobody listens, which Ray itself would find out after minutes."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdigit()):
        raise InputError(f"an address is host:port or 'auto', got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise TrimtabError(
            f"no cluster answers at {address} ({_one_line(error)}); start one by `ray start --head`, or leave the "
            "address out"
        ) from None


def _refusal(address: str, error: Exception, modules: str | None) -> str:
    """Why Ray did not connect, and what helps."""
    from ray.exceptions import AuthenticationError

    text = _one_line(error)
    token = (
        "RAY_AUTH_MODE=token and the token that it was started with, by RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or "
        "~/.ray/auth_token"
    )
    if isinstance(error, AuthenticationError) or "authentic" in text.lower():
        return f"the cluster at {address} refuses this token; give {token}"
    if "Failed to connect to Ray cluster" in text:  # all that Ray says of a wrong token, too
        return f"what answers at {address} does not let us in; where it is a Ray cluster, give {token}"
    if "Version mismatch" in text:
        return f"{text.replace('Version mismatch: ', '')}; install the same versions here and on the cluster"
    if modules is not None and ("exceeds" in text or "too large" in text.lower()):
        return (
            f"the directory {modules!r} of the run's own modules is too large to be sent to the nodes ({text}); start "
            "from one that holds little else, or name what stays behind in a .gitignore"
        )
    if isinstance(error, ConnectionError) and address == "auto":
        return "no cluster runs on this machine; start one by `ray start`, or leave the address out"
    return f"the cluster at {address} cannot be used: {text}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _write_private(path: Path, content: str) -> None:
    """A new file that its owner alone can read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(content)


@contextmanager
def _temporary_directory() -> Iterator[Path]:
    """A directory with a short path (Unix sockets lie in it, and their paths are bounded), removed at the end.

    Those of drivers that were killed are removed, too: their locks are free.
    """
    for old in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(Timeout, OSError):
            _remove_dead(old)
    directory = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        with FileLock(directory / ALIVE):
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _remove_dead(directory: Path) -> None:
    """Remove a session's directory unless its driver lives; Timeout where it does."""
    status = directory.stat()
    if status.st_uid != os.getuid():
        return
    if (directory / ALIVE).exists():
        with FileLock(directory / ALIVE, timeout=0):
            shutil.rmtree(directory, ignore_errors=True)
    elif time.time() - status.st_mtime > ORPHAN_S:  # removed, then made again by processes of Ray that were dying
        shutil.rmtree(directory, ignore_errors=True)
