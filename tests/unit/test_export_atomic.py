"""A directory appears whole or not at all."""

from pathlib import Path

import pytest

from automl.export.atomic import appearing_at_once
from automl.export.manifest import MANIFEST
from search_spaces.errors import InputError


def _write(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    (folder / "model.so").write_text(text)


def test_it_appears_with_all_its_files_and_leaves_nothing_beside(tmp_path: Path) -> None:
    with appearing_at_once(tmp_path / "best") as folder:
        _write(folder, "new")
        assert not (tmp_path / "best").exists()
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == [MANIFEST, "model.so"]
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert (tmp_path / "best" / "model.so").stat().st_mode & 0o777 == 0o644


def test_a_failure_leaves_the_old_one_untouched(tmp_path: Path) -> None:
    with appearing_at_once(tmp_path / "best") as folder:
        _write(folder, "old")
    with pytest.raises(FileNotFoundError), appearing_at_once(tmp_path / "best") as folder:
        _write(folder / "absent", "half")
    assert (tmp_path / "best" / "model.so").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_an_export_is_replaced(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with appearing_at_once(tmp_path / "best") as folder:
            _write(folder, text)
    assert (tmp_path / "best" / "model.so").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_anything_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("precious")
    with pytest.raises(InputError, match="something else"), appearing_at_once(tmp_path / "thesis"):
        pytest.fail("must not begin")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "precious"
    (tmp_path / "file").write_text("precious")
    with pytest.raises(InputError), appearing_at_once(tmp_path / "file"):
        pytest.fail("must not begin")
