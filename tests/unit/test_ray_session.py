import os
import tempfile
import time
from pathlib import Path

import pytest
from filelock import FileLock

from automl.orchestration.ray_session import ALIVE, ORPHAN_S, PREFIX, _temporary_directory


@pytest.fixture
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def make(temp: Path, name: str, *, age_s: float = 0.0, alive: bool = True) -> Path:
    directory = temp / f"{PREFIX}{name}"
    (directory / "ray").mkdir(parents=True)
    if alive:
        (directory / ALIVE).touch()
    os.utime(directory, (time.time() - age_s,) * 2)
    return directory


def test_a_session_leaves_nothing_behind(temp: Path) -> None:
    with _temporary_directory() as directory:
        assert directory.parent == temp
        (directory / "ray").mkdir()
    assert list(temp.iterdir()) == []


def test_what_dead_sessions_left_is_removed_and_nothing_else(temp: Path) -> None:
    driven, killed = make(temp, "driven"), make(temp, "killed")
    orphan = make(temp, "orphan", age_s=ORPHAN_S + 60, alive=False)
    starting = make(temp, "starting", alive=False)
    other = temp / "somebody-elses"
    other.mkdir()
    with FileLock(driven / ALIVE), _temporary_directory():
        assert driven.exists()
        assert starting.exists()
        assert other.exists()
        assert not killed.exists()
        assert not orphan.exists()
