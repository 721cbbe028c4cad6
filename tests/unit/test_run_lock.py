"""Who drives a run: one process at a time, that says who it is, and is replaced where it died without letting go."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from automl.config import load_config
from automl.errors import TrimtabError
from automl.run import lock as module
from automl.run.directory import RunDirectory, write_json
from automl.run.lock import Holder, RunLock, locks_of, take_over

CONFIG = load_config({"model": {"name": "lenet5"}, "data": {"name": "digits"}, "budget": {"ratio": 0.5}})
CONTEXT = multiprocessing.get_context("spawn")
PATIENCE_S = 60


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.05)
    monkeypatch.setattr(module, "SILENCE_S", 1.0)


def without_locks(error: int) -> None:
    def flock(*arguments: Any) -> None:
        raise OSError(error, os.strerror(error))

    fcntl.flock = flock


def hold(path: Path, error: int, held: Any, release: Any) -> None:
    """Drive a run in a process of its own, where `error` is set on a file system that answers so to locks."""
    module.BEAT_S = 0.05
    if error:
        without_locks(error)
    try:
        with RunDirectory(path).drive() as clock:
            held.set()
            while not release.wait(0.02):
                clock.beat(every_s=0.0)
            clock.set("unfinished", "let go")
    except TrimtabError as refused:
        (path / f"refused-{os.getpid()}").write_text(str(refused))


@contextmanager
def driven(path: Path, error: int = 0) -> Iterator[tuple[BaseProcess, Any]]:
    """A process that drives a run, and what lets it end."""
    held, release = CONTEXT.Event(), CONTEXT.Event()
    process = CONTEXT.Process(target=hold, args=(path, error, held, release))
    process.start()
    try:
        assert held.wait(PATIENCE_S)
        yield process, release
    finally:
        process.kill()
        process.join()


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", CONFIG)


def refusal(path: Path, process: BaseProcess) -> str:
    """What a process that was to drive a run said."""
    process.join(PATIENCE_S)
    return (path / f"refused-{process.pid}").read_text()


def elsewhere(run: RunDirectory) -> None:
    """Let the holder be one of another machine."""
    file = run.path / ".driver.json"
    write_json(file, {**json.loads(file.read_text()), "host": "node-7"})


def test_a_holder_says_who_it_is_and_leaves_nothing_behind(run: RunDirectory) -> None:
    with driven(run.path) as (process, release):
        holder = run.driver.holder
        assert holder is not None
        assert (holder.pid, holder.host) == (process.pid, socket.gethostname())
        said = rf"driven by process {process.pid}, since 2.*; stop that one, or look on with `trimtab status [^;]*`$"
        with pytest.raises(TrimtabError, match=said), run.lock():
            pass
        release.set()
        process.join(PATIENCE_S)
    assert run.driver.holder is None
    assert sorted(path.name for path in run.path.iterdir()) == [".lock", "config.yaml", "run.json"]


def test_one_on_another_machine_is_named_with_the_remedy(run: RunDirectory) -> None:
    with driven(run.path) as (process, _):
        elsewhere(run)
        said = rf"process {process.pid} on 'node-7', since .*if 'node-7' is gone, `trimtab resume \S+ --take-over`"
        with pytest.raises(TrimtabError, match=said), run.lock():
            pass


def test_what_lives_is_not_taken_over(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it where the clock is set back while it is watched."""
    times = iter(range(2_000_000_000, 0, -1_000_000))
    with driven(run.path) as (process, _):
        with pytest.raises(TrimtabError, match=rf"driven by process {process.pid}, since .*, which is alive"):
            take_over([run.driver])
        monkeypatch.setattr(Holder, "here", False)
        monkeypatch.setattr(time, "time", lambda: float(next(times)))
        with pytest.raises(TrimtabError, match="gives signs of life"):
            take_over([run.driver])
        assert run.driven()


def test_what_is_silent_is_taken_over_and_leaves_the_run_alone_when_it_wakes_up(run: RunDirectory) -> None:
    """As a machine that was cut off: stopped, so that it holds the lock and says nothing."""
    store = run.path / ".trials.sqlite.lock"
    with driven(run.path) as (process, _):
        store.touch()
        elsewhere(run)
        os.kill(int(process.pid or 0), signal.SIGSTOP)
        take_over([run.driver])
        assert not store.exists()  # the dead machine's
        with run.drive() as clock:
            clock.set("running", "mine")
            os.kill(int(process.pid or 0), signal.SIGCONT)
            said = refusal(run.path, process)
            assert f"was taken over by process {os.getpid()}, since" in said
            assert run.info().stage == "mine"
            assert run.driven()


def test_a_lock_that_nobody_holds_is_passed_over_at_once(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_S", 1e6)
    take_over(locks_of(run.path))
    with run.lock():
        pass


def test_a_holder_that_does_not_say_who_it_is_is_not_taken_over(run: RunDirectory) -> None:
    with driven(run.path) as (process, _):
        os.kill(int(process.pid or 0), signal.SIGSTOP)
        (run.path / ".driver.json").write_text("{")
        with pytest.raises(TrimtabError, match="does not say who it is"):
            take_over([run.driver])


def test_of_two_that_take_over_at_once_one_drives(run: RunDirectory) -> None:
    with driven(run.path) as (stopped, _):
        elsewhere(run)
        os.kill(int(stopped.pid or 0), signal.SIGSTOP)
        held, release = CONTEXT.Event(), CONTEXT.Event()
        rivals = [CONTEXT.Process(target=rival, args=(run.path, held, release)) for _ in range(2)]
        for process in rivals:
            process.start()
        try:
            assert held.wait(PATIENCE_S)
            deadline = time.monotonic() + PATIENCE_S
            while sum(process.is_alive() for process in rivals) == 2:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            (loser,) = [process for process in rivals if not process.is_alive()]
            (winner,) = [process for process in rivals if process is not loser]
            assert "driven" in refusal(run.path, loser)
            holder = run.driver.holder
            assert holder is not None
            assert holder.pid == winner.pid
            release.set()
            winner.join(PATIENCE_S)
            assert run.info().stage == "let go"
        finally:
            for process in rivals:
                process.kill()
                process.join()


def rival(path: Path, held: Any, release: Any) -> None:
    module.SILENCE_S = 1.0
    try:
        take_over(locks_of(path))
    except TrimtabError as refused:
        (path / f"refused-{os.getpid()}").write_text(str(refused))
        return
    hold(path, 0, held, release)


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK])
def test_without_locks_of_the_system_one_drives_all_the_same(
    run: RunDirectory, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that was killed on this machine is found out by the next."""
    with driven(run.path, error) as (process, _):
        monkeypatch.setattr(fcntl, "flock", fcntl.flock)  # to be as before in the end
        without_locks(error)
        assert run.driven()
        with pytest.raises(TrimtabError, match=f"driven by process {process.pid}"), run.lock():
            pass
        process.kill()
        process.join()
        assert not run.driven()
        with run.lock():
            assert RunLock(run.path).held()
    assert not [path for path in run.path.iterdir() if path.name.startswith(".driver")]
