"""Runs one artefact on the test images in a fresh process that is gone afterwards.

The process bounds what a crash, a hang or a leak can do to the caller. It is no sandbox: a library or a program is
code with the rights of the user (see docs/security.md), which is why its digest is matched before it comes here.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import automl
from automl.export.manifest import LIBRARY

REQUEST, RESULT, OUTPUTS = "request.json", "result.json", "outputs.npy"
PACKAGE_ROOT = Path(automl.__file__).resolve().parents[1]
MESSAGE_BYTES = 4096
WORKER = "automl.export.verify_worker"


@dataclass(frozen=True)
class Ran:
    """What came back from the process.

    Attributes:
        outputs: [N, ...] of the images, None where it failed.
        facts: what the process found out beside: "latency", and for the rebuilt network "params", "macs", "policy".
        error: why it failed, None where it did not.
    """

    outputs: npt.NDArray[np.float32] | None
    facts: dict[str, Any]
    error: str | None


def run_artefact(
    artefact: str,
    folder: Path,
    images: Path,
    *,
    batch: int,
    threads: int,
    allow_code: bool,
    timeout_s: float,
) -> Ran:
    """Load the artefact in a fresh process and run it on every image.

    Args:
        artefact: its file name.
        folder: holds it, and nothing that must survive; the process writes there.
        images: `.npy` file [N, C, H, W].
        batch: images at a time.
        threads: of the engine.
        allow_code: whether a model that is the user's own code may be imported.
        timeout_s: seconds after which the process is killed.
    """
    request = {
        "artefact": artefact,
        "images": str(images),
        "batch": batch,
        "threads": threads,
        "allow_code": allow_code,
    }
    (folder / REQUEST).write_text(json.dumps(request), encoding="utf-8")
    failure = _run_process(artefact, folder, threads, timeout_s)
    if failure is not None:
        return Ran(None, {}, failure)
    try:
        outputs = np.load(folder / OUTPUTS, allow_pickle=False)
        facts = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return Ran(None, {}, f"left no readable result: {error}")
    return Ran(outputs, facts, None)


def _run_process(artefact: str, folder: Path, threads: int, timeout_s: float) -> str | None:
    """Run the worker to its end; why it failed, None where it did not."""
    # -P: the current directory must not come before the installed packages
    command = [sys.executable, "-P", "-m", WORKER, str(folder)]
    messages = folder / "stderr.txt"
    with messages.open("wb") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=_environment(artefact, threads),
            start_new_session=True,
        )
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return f"did not end within {timeout_s:g} s and was killed"
        finally:
            _end(process)
    if code == 0:
        return None
    if code < 0:
        return f"the process died of {signal.Signals(-code).name}"
    with messages.open("rb") as file:
        file.seek(max(0, messages.stat().st_size - MESSAGE_BYTES))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"the process ended with exit code {code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill whatever of the process's own session is left, on every way out."""
    with contextlib.suppress(ProcessLookupError):  # all of it has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(artefact: str, threads: int) -> dict[str, str]:
    path = os.pathsep.join(part for part in (str(PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")) if part)
    environment = os.environ | {
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": str(threads),
        "TVM_NUM_THREADS": str(threads),
        "PYTHONWARNINGS": "ignore",
    }
    if artefact == LIBRARY:
        environment["TVM_USE_RUNTIME_LIB"] = "1"  # what a device has: no compiler
    return environment
