"""Where the cache is, and that its files are whole or absent."""

from pathlib import Path

import pytest

from automl.cache import atomic_path, cache_dir, digest_of
from search_spaces.errors import TrimtabError


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "here"))
    assert cache_dir("a", "b") == tmp_path / "here" / "a" / "b"
    assert (tmp_path / "here" / "a" / "b").is_dir()
    monkeypatch.delenv("TRIMTAB_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir("a") == tmp_path / ".cache" / "trimtab" / "a"


def test_that_it_cannot_be_made_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(TrimtabError, match="set TRIMTAB_CACHE"):
        cache_dir("data")


def test_atomic_path(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("old")

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half of the n")
            assert target.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
    with atomic_path(target) as temporary:
        temporary.write_text("new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]
    assert target.stat().st_mode & 0o777 == 0o644


def test_digest_depends_on_values_not_on_their_order() -> None:
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1})
    assert len({digest_of(recipe) for recipe in ({"a": 1}, {"a": "1"}, {"a": 1.5}, {"b": 1}, {"a": None})}) == 5
