"""A local Ray for the length of a run: loopback only, quiet, bounded, gone afterwards."""

import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from automl.errors import TrimtabError

OBJECT_STORE_BYTES = 256 * 2**20
PREFIX = "trimtab-ray-"
ALIVE = ".alive"
ORPHAN_S = 120.0

_TOKEN = secrets.token_hex(32)
"""Guards Ray's ports; random, so nothing has to lie in the user's home. A process reads its token once, so all sessions
of a process have the same one."""

_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # bind to loopback, not to every interface
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no TensorBoard, CSV and JSON files: the record is our store
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "OMP_NUM_THREADS": "1",  # a worker is one thread: parallelism comes from their number
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TVM_NUM_THREADS": "1",
}


@contextmanager
def ray_session(cpus: int, *, dashboard: bool = False) -> Iterator[Path]:
    """Start Ray with that many CPU slots and all GPUs; yields a temporary directory that lives as long.

    A Ray that runs in this process already is used as it is, and left running.

    Raises:
        TrimtabError: Ray does not start.
    """
    variables = {**_ENVIRONMENT, "RAY_AUTH_TOKEN": _TOKEN}
    with _temporary_directory() as temporary, _environment(variables):
        import ray
        import torch

        logging.getLogger("ray").setLevel(logging.ERROR)
        if ray.is_initialized():
            yield temporary
            return
        try:
            ray.init(
                num_cpus=cpus,
                num_gpus=torch.cuda.device_count(),  # as the evaluators count them
                _node_ip_address="127.0.0.1",  # said here too: the variable counts only before Ray is first imported
                include_dashboard=dashboard,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(temporary / "ray"),
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise TrimtabError(f"Ray does not start: {' '.join(str(error).split())[:300]}") from error
        try:
            yield temporary
        finally:
            ray.shutdown()


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


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for Ray's processes; ours are as before when it ends."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
