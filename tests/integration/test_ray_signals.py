"""What Ray does to the signals of a process that starts it: nothing that is left to be seen."""

import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys
from automl.errors import RunStoppedError
from automl.orchestration.ray_session import ray_session
from automl.signals import StopSignal

{before}
with StopSignal() as stop:
    with ray_session(1):
        pass
    os.kill(os.getpid(), signal.SIG{name})
    try:
        stop.check()
    except RunStoppedError:
        sys.exit(7)
"""


@pytest.mark.parametrize(("name", "before"), [("TERM", ""), ("INT", "import ray")])
def test_a_signal_after_ray_has_ended_is_a_wish_to_stop_as_before_it_started(name: str, before: str) -> None:
    script = SCRIPT.format(name=name, before=before)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 7, done.stderr
