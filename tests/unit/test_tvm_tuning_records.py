"""The file that keeps what tuning found: grows only, outlives kills and damage, is shared by processes."""

from dataclasses import replace
from pathlib import Path

import pytest

from backends.tvm.tuning_records import TuningRecord, TuningRecords
from search_spaces.errors import TrimtabError

RECORD = TuningRecord("f00", "cumsum", 64, "[[],[]]", 1e-6, 2e-6)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "device" / "records"


def test_a_record_is_found_by_other_readers(path: Path) -> None:
    reader = TuningRecords(path)
    assert reader.find("f00", 64) is None
    assert not path.exists()
    assert TuningRecords(path).publish(RECORD) == RECORD
    assert reader.find("f00", 64) == RECORD
    assert TuningRecords(path).find("f00", 8) == RECORD
    assert reader.find("f00", 65) is None


def test_the_first_record_stands_unless_more_trials_are_asked_for(path: Path) -> None:
    one, other = TuningRecords(path), TuningRecords(path)
    one.publish(RECORD)
    assert other.publish(replace(RECORD, seconds=5e-7)) == RECORD
    more = replace(RECORD, trials=128)
    assert other.publish(more) == more
    assert one.find("f00", 128) == more
    assert one.find("f00", 64) == RECORD


def test_what_a_kill_tore_is_ignored_and_written_over(path: Path) -> None:
    TuningRecords(path).publish(RECORD)
    whole = path.read_bytes()
    for cut in (1, 20, len(whole) - 1):
        path.write_bytes(whole + whole[:cut].replace(b"f00", b"f01"))
        records = TuningRecords(path)
        assert records.find("f00", 64) == RECORD
        assert records.find("f01", 64) is None
        second = replace(RECORD, function="f01", name="roll")
        records.publish(second)
        assert TuningRecords(path).find("f01", 64) == second
        assert TuningRecords(path).find("f00", 64) == RECORD


def test_damaged_lines_are_as_if_absent(path: Path) -> None:
    records = TuningRecords(path)
    records.publish(RECORD)
    records.publish(replace(RECORD, function="f01"))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0].replace(b"1e-06", b"9e-06") + b"\xff\x00 rubbish\n\n{}\n" + lines[1])
    again = TuningRecords(path)
    assert again.find("f00", 1) is None
    assert again.find("f01", 1) is not None


def test_code_seen_to_be_right_is_remembered(path: Path) -> None:
    records = TuningRecords(path)
    assert not records.is_verified("cumsum 1234")
    records.mark_verified("cumsum 1234")
    assert TuningRecords(path).is_verified("cumsum 1234")
    assert not TuningRecords(path).is_verified("cumsum 123")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    records = TuningRecords(tmp_path / "file" / "records")
    with pytest.raises(TrimtabError, match=r"cannot write the tuning records .*file"):
        records.publish(RECORD)
