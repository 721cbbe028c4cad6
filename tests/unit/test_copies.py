"""Copies of run directories: whole or not there, and written into nothing but the directory that is made for them."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from automl.config import load_config
from automl.errors import InputError, TrimtabError
from automl.run.copies import MANIFEST, OBJECTS, Copy, is_copy, owner_of
from automl.run.store import Store
from automl.testing.runs import make_run

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "one", evaluations=6).path


def test_what_is_fetched_is_what_was_copied(run: Path, tmp_path: Path) -> None:
    (run / "finalists").mkdir(exist_ok=True)
    (run / "finalists" / "weights").write_bytes(b"12")
    for storage in (str(tmp_path / "nfs"), (tmp_path / "uri").as_uri()):
        copy = Copy.within(storage, "one")
        copy.write(run, "owner")
        copy.fetch(tmp_path / copy.uri.rsplit("/")[-2] / "back")
    back = tmp_path / "uri" / "back"
    files = {path.relative_to(back).as_posix() for path in back.rglob("*") if path.is_file()}
    assert files == {
        "config.yaml",
        "run.json",
        "summary.json",
        "explanation.json",
        "trials.sqlite",
        "finalists/weights",
    }
    assert (back / "run.json").read_bytes() == (run / "run.json").read_bytes()
    with closing(Store.read(run / "trials.sqlite")) as before, closing(Store.read(back / "trials.sqlite")) as after:
        assert list(before.evaluations()) == list(after.evaluations())
    assert is_copy(str(tmp_path / "nfs" / "one"))
    assert not is_copy(str(run))


def test_a_database_is_copied_as_it_was_at_one_moment(tmp_path: Path) -> None:
    """Also what is committed, and stands in the log beside it alone."""
    folder = tmp_path / "run"
    folder.mkdir()
    with closing(sqlite3.connect(folder / "a.sqlite", isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE t (x)")
        database.execute("INSERT INTO t VALUES (1)")
        database.execute("BEGIN")
        database.execute("INSERT INTO t VALUES (2)")
        Copy(str(tmp_path / "copy")).write(folder, "owner")
    Copy(str(tmp_path / "copy")).fetch(tmp_path / "back")
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["a.sqlite"]
    with closing(sqlite3.connect(tmp_path / "back" / "a.sqlite")) as database:
        assert database.execute("SELECT x FROM t").fetchall() == [(1,)]


def test_a_copy_that_is_cut_short_is_the_one_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, copy = tmp_path / "run", Copy(str(tmp_path / "copy"))
    folder.mkdir()
    (folder / "a").write_text("first")
    copy.write(folder, "owner")
    (folder / "a").write_text("second")
    (folder / "b").write_text("more")
    written: list[str] = []
    write = Copy._write

    def cut(self: Copy, name: str, content: bytes) -> None:
        if len(written) == 1:
            raise OSError("the storage is gone")
        written.append(name)
        write(self, name, content[:2])  # the one that is being written is half there

    with monkeypatch.context() as patch:
        patch.setattr(Copy, "_write", cut)
        with pytest.raises(TrimtabError, match="the storage is gone"):
            copy.write(folder, "owner")
    copy.fetch(tmp_path / "back")
    assert {path.name: path.read_text() for path in (tmp_path / "back").iterdir()} == {"a": "first"}
    copy.write(folder, "owner")
    copy.fetch(tmp_path / "again")
    assert {path.name: path.read_text() for path in (tmp_path / "again").iterdir()} == {"a": "second", "b": "more"}
    assert len(list((tmp_path / "copy" / OBJECTS).iterdir())) == 2  # what the first one had is removed


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/outside", "a/../../outside", "a\\outside", "C:outside", "", ".lock", "a//b", "a/./b"]
)
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a").write_text("content")
    copy = Copy(str(tmp_path / "copy"))
    copy.write(tmp_path / "run", "owner")
    _change(tmp_path / "copy", lambda manifest: manifest.update(files={name: manifest["files"]["a"]}))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="names a file"):
        copy.fetch(tmp_path / "back")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest.update(format=9), "has format 9"),
        (lambda manifest: manifest.pop("owner"), "cannot be read"),
        (lambda manifest: manifest.update(files={"a": "../a"}), "names a file"),
        (lambda manifest: manifest.update(files={"a": "0" * 64}), "is not what it was"),
        (lambda manifest: manifest.update(files=[]), "holds no files"),
    ],
)
def test_a_damaged_copy_is_refused(change: Change, message: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a").write_text("content")
    copy = Copy(str(tmp_path / "copy"))
    copy.write(tmp_path / "run", "owner")
    _change(tmp_path / "copy", change)
    with pytest.raises(InputError, match=message):
        copy.fetch(tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_the_copy_of_another_run_is_left_alone(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "one", evaluations=6, seeds=[1])
    copy = Copy.within(str(tmp_path / "nfs"), "one")
    copy.write(run, "owner")
    copy.check_owner("owner")
    with pytest.raises(InputError, match="is the copy of another run"):
        copy.check_owner(owner_of(other))


@pytest.mark.parametrize("uri", ["relative/folder", "nothing://there/run", "s3://key:secret@bucket/run"])
def test_what_is_no_storage_is_refused(uri: str) -> None:
    with pytest.raises(InputError) as refused:
        Copy(uri)
    assert "secret" not in str(refused.value)


def test_there_is_nothing_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"it has no {MANIFEST}"):
        Copy(str(tmp_path / "nothing")).fetch(tmp_path / "back")


def test_a_config_holds_no_password() -> None:
    with pytest.raises(InputError, match="holds no password") as refused:
        load_config(
            {
                "model": {"name": "lenet5"},
                "data": {"name": "digits"},
                "budget": {"metric": "macs", "ratio": 0.5},
                "storage": {"uri": "s3://key:secret@bucket/run"},
            }
        )
    assert "secret" not in str(refused.value)


def _change(copy: Path, change: Change) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    change(manifest)
    (copy / MANIFEST).write_text(json.dumps(manifest))
