"""Signals as a wish to stop."""

import os
import signal

import pytest

from automl.errors import RunStoppedError
from automl.signals import StopSignal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_acted_upon_where_it_is_asked_for(number: int) -> None:
    before = signal.getsignal(number)
    with StopSignal() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        assert stop.requested
        with pytest.raises(RunStoppedError):
            stop.check()
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    with StopSignal():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
