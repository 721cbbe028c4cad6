"""The machine's lease between real processes: alone or shared, never starved, never outliving its holder."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backends.lease import exclusive_lease, file_lock, measuring_turn, shared_lease
from search_spaces.errors import TrimtabError

_HOLDER = """
import sys, time
from backends.lease import exclusive_lease, measuring_turn, shared_lease
with {lease}():
    print("held", flush=True)
    sys.stdin.readline()
"""

_EVALUATOR = """
import sys, time
from backends.lease import shared_lease
while True:
    with shared_lease(60):
        print("begun", flush=True)
        time.sleep(0.02)
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


@contextmanager
def running(script: str) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


@contextmanager
def held_elsewhere(lease: str) -> Iterator[subprocess.Popen[str]]:
    with running(_HOLDER.format(lease=lease)) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        yield child


def test_evaluators_share_the_machine() -> None:
    with held_elsewhere("shared_lease"), shared_lease(0), shared_lease(0):
        pass


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        ("exclusive_lease", shared_lease, "the machine has been measuring for 0.05 s"),
        ("exclusive_lease", exclusive_lease, "another process has been measuring or computing for 0.05 s"),
        ("shared_lease", exclusive_lease, "another process has been measuring or computing for 0.05 s"),
        ("measuring_turn", shared_lease, "the machine has been measuring for 0.05 s"),
    ],
)
def test_a_measurer_has_the_machine_alone(theirs: str, ours: Callable[[float], object], said: str) -> None:
    with held_elsewhere(theirs) as holder:
        with pytest.raises(TrimtabError, match=said), ours(0.05):  # type: ignore[attr-defined]
            pass
        assert holder.stdin is not None
        holder.stdin.write("\n")
        holder.stdin.flush()
        with ours(30):  # type: ignore[attr-defined]
            pass


@pytest.mark.parametrize("lease", ["exclusive_lease", "shared_lease", "measuring_turn"])
def test_a_killed_holder_lets_go(lease: str) -> None:
    with held_elsewhere(lease) as holder:
        holder.send_signal(signal.SIGKILL)
        with exclusive_lease(30):
            pass
        with shared_lease(30):
            pass


def test_a_forked_child_of_a_killed_holder_lets_go() -> None:
    script = """
import os, sys, time
from backends.lease import exclusive_lease
with exclusive_lease():
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""
    with running(script) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            with pytest.raises(TrimtabError, match="has been measuring"), shared_lease(0.05):
                pass  # the child lets go of its own copies only
            holder.kill()
            with exclusive_lease(30):
                os.kill(child, 0)  # it lives, and holds nothing
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_forked_child_leaves_the_block_without_letting_go() -> None:
    script = """
import os, sys
from backends.lease import exclusive_lease, shared_lease
from search_spaces.errors import TrimtabError
with exclusive_lease(5):
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
if child:
    sys.exit(os.waitstatus_to_exitcode(status))
try:
    with shared_lease(0):
        os._exit(2)
except TrimtabError:
    os._exit(0)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_measurer_is_not_starved_by_evaluators_who_take_turns() -> None:
    with running(_EVALUATOR) as a, running(_EVALUATOR) as b, running(_EVALUATOR) as c:
        for child in (a, b, c):
            assert child.stdout is not None
            assert child.stdout.readline() == "begun\n"
        for _ in range(20):
            time.sleep(0.005)  # evaluators begin meanwhile
            with exclusive_lease(60):
                pass
        for child in (a, b, c):  # nor are they
            assert child.stdout is not None
            assert child.stdout.readline() == "begun\n"


def test_once_a_measurer_waits_no_evaluator_begins() -> None:
    order: list[str] = []

    def measure() -> None:
        with exclusive_lease(60):
            order.append("measured")

    with shared_lease(5):
        waiting = threading.Thread(target=measure)
        waiting.start()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                with shared_lease(0):
                    time.sleep(0.005)
            except TrimtabError:
                order.append("kept out")
                break
    with shared_lease(60):
        order.append("evaluated")
    waiting.join()
    assert order == ["kept out", "measured", "evaluated"]


def test_measurements_of_one_turn_follow_each_other() -> None:
    with measuring_turn(5):
        for _ in range(3):
            with exclusive_lease(5):  # in the measuring child, in earnest
                pass
            with pytest.raises(TrimtabError, match="has been measuring"), shared_lease(0):
                pass
    with shared_lease(5):
        pass


def test_a_lock_file_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(TrimtabError, match=r"cannot make the lock file .*; set TRIMTAB_CACHE"),
        file_lock(tmp_path / "file" / "lock", shared=True, timeout_s=1, busy=""),
    ):
        pass
