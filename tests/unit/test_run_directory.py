import json
import multiprocessing
from pathlib import Path

import pytest

from automl.config import load_config
from automl.errors import InputError, TrimtabError
from automl.run.directory import RunDirectory, next_free, write_atomically, write_json
from automl.run.status import run_status

CONFIG = load_config({"model": {"name": "lenet5"}, "data": {"name": "digits"}, "budget": {"ratio": 0.5}})


def test_a_new_run_holds_its_config_and_is_unfinished(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "deep" / "run", CONFIG)
    assert RunDirectory.open(tmp_path / "deep" / "run").config() == CONFIG
    assert directory.info().state == "unfinished"
    assert directory.summary() == {}


def test_an_existing_run_is_not_touched(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", CONFIG)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(InputError, match=r"trimtab resume .*run"):
        RunDirectory.create(tmp_path / "run", CONFIG)
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_directory_of_something_else_is_refused_and_an_empty_one_is_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("...")
    with pytest.raises(InputError, match="not empty"):
        RunDirectory.create(tmp_path / "thesis", CONFIG)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not empty"):
        RunDirectory.create(tmp_path / "file", CONFIG)
    with pytest.raises(InputError, match="cannot be"):
        RunDirectory.create(tmp_path / "file" / "below", CONFIG)
    (tmp_path / "empty").mkdir()
    RunDirectory.create(tmp_path / "empty", CONFIG)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is no run directory: it has no run.json"),
        ("{", "is damaged"),
        ("[]", "has layout None"),
        ('{"format": 99}', "has layout 99, made by a newer Trimtab"),
        ('{"format": 1}', "keys are missing"),
        ('{"format": 1, "state": "flying"', "is damaged"),
    ],
)
def test_what_is_no_run_directory(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=said):
        RunDirectory.open(tmp_path)
    with pytest.raises(InputError, match="is no run directory"):
        RunDirectory.open(tmp_path / "none")


def hold(path: Path, held: object, release: object) -> None:
    with RunDirectory(path).drive():
        held.set()  # type: ignore[attr-defined]
        release.wait()  # type: ignore[attr-defined]


def test_one_process_drives_and_the_lock_goes_with_it(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", CONFIG)
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(directory.path, held, release))
    other.start()
    try:
        assert held.wait(30)
        assert directory.driven()
        assert run_status(directory)["state"] == "running"
        assert run_status(directory)["driver"].startswith(f"process {other.pid}, since ")
        with pytest.raises(TrimtabError, match=rf"driven by process {other.pid}, since "), directory.lock():
            pass
    finally:
        other.kill()
        other.join()
    assert not directory.driven()
    status = run_status(directory)
    assert (status["state"], status["driver"]) == ("unfinished", None)
    assert "trimtab resume" in status["reason"]
    with directory.lock():
        pass


def test_time_adds_up_over_sessions(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", CONFIG)
    directory.write_info(directory.info().__class__(**{**json.loads(directory.info_file.read_text()), "wall_s": 100.0}))
    with directory.drive() as clock:
        assert clock.wall_s >= 100.0
        clock.set("done", "done")
    assert directory.info().wall_s >= 100.0
    assert directory.info().state == "done"


def test_an_atomic_write_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    write_json(file, {"a": 1})
    with pytest.raises(ValueError, match="Out of range"):
        write_json(file, {"a": float("nan")})
    with pytest.raises(TypeError):
        write_atomically(file, "text")  # type: ignore[arg-type]
    assert json.loads(file.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["f.json"]


def test_next_free_counts_up(tmp_path: Path) -> None:
    assert next_free(tmp_path, "x").name == "x-1"
    (tmp_path / "x-1").mkdir()
    assert next_free(tmp_path, "x").name == "x-2"
