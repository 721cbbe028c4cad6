"""The latency table in one process: what is published stands, for the device it was measured on."""

import math
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from backends.latency_table import DeviceKey, Entry, LatencyTable, default_table_path
from search_spaces.errors import InputError, TrimtabError

DEVICE = DeviceKey("tvm", "A processor", "x86-64-v4", 1, "apache-tvm 0.27", "0123abcd")
ENTRY = Entry(0.1 + 0.2, 0.3, 0.31, 100, 1e-6, "cafe", "conv2d", 1e6, 4096.0)


def test_what_is_published_is_read_back_exactly(tmp_path: Path) -> None:
    published = {f"conv2d({i})": replace(ENTRY, latency_s=0.3 + i * math.pi / 1e3) for i in range(3)}
    published['odd "text"\n{}\udcff'] = ENTRY
    with LatencyTable(tmp_path / "new" / "table.sqlite", DEVICE) as table:
        for text, entry in published.items():
            assert table.publish(text, entry) == entry
        assert table.get(["conv2d(1)", "unknown"]) == {"conv2d(1)": published["conv2d(1)"]}
    with LatencyTable(tmp_path / "new" / "table.sqlite", DEVICE) as table:
        assert table.entries() == published
        assert list(table.entries()) == list(published)
        assert table.notices == []


def test_the_first_published_value_stands(tmp_path: Path) -> None:
    path = tmp_path / "table.sqlite"
    with LatencyTable(path, DEVICE) as ours, LatencyTable(path, DEVICE) as theirs:
        assert theirs.publish("conv2d()", ENTRY) == ENTRY
        assert ours.publish("conv2d()", replace(ENTRY, latency_s=0.305)) == ENTRY
        assert ours.publish("dense()", ENTRY) == ENTRY
        assert theirs.get(["dense()"]) == {"dense()": ENTRY}  # without opening it anew
        assert theirs.publish("dense()", replace(ENTRY, latency_s=0.305)) == ENTRY
    with LatencyTable(path, DEVICE) as table:
        assert table.entries() == {"conv2d()": ENTRY, "dense()": ENTRY}


def test_a_table_at_rest_is_one_plain_file(tmp_path: Path) -> None:
    with LatencyTable(tmp_path / "table.sqlite", DEVICE) as table:
        table.publish("conv2d()", ENTRY)
        assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == ["table.sqlite"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"latency_s": 0.0, "p10_s": 0.0},
        {"latency_s": -1.0},
        {"latency_s": math.nan},
        {"p90_s": math.inf},
        {"p10_s": 0.5},
        {"p90_s": 0.2},
        {"runs": 0},
        {"error": math.nan},
        {"work": -1.0},
        {"traffic": math.inf},
    ],
)
def test_figures_that_no_measurement_gives_are_no_entry(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"latency|is (nan|inf|-1)"):
        replace(ENTRY, **wrong)  # type: ignore[arg-type]


def test_each_device_has_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    others = [
        replace(DEVICE, engine="torch"),
        replace(DEVICE, cpu="Another"),
        replace(DEVICE, target="x86-64-v3"),
        replace(DEVICE, threads=2),
        replace(DEVICE, versions="apache-tvm 0.28"),
        replace(DEVICE, rules="0123abce"),
    ]
    assert len({default_table_path(device) for device in [DEVICE, *others]}) == 7
    assert default_table_path(DEVICE) == default_table_path(replace(DEVICE))
    assert default_table_path(DEVICE).parent == tmp_path / "latency"
    assert not list(tmp_path.iterdir())


def test_another_devices_table_is_refused_in_one_line(tmp_path: Path) -> None:
    here, there = tmp_path / "here.sqlite", tmp_path / "there.sqlite"
    other = replace(DEVICE, cpu="Another", threads=2)
    with LatencyTable(there, other) as table:
        table.publish("conv2d()", ENTRY)
    before = there.read_bytes()
    said = (
        r"^latency table .*there.sqlite is of another device \(cpu 'Another', here 'A processor'; threads 2, here 1\)"
    )
    with pytest.raises(InputError, match=said):
        LatencyTable(there, DEVICE)
    with LatencyTable(here, DEVICE) as table, pytest.raises(InputError, match=said):
        table.merge(there)
    assert there.read_bytes() == before


def test_a_table_moves_to_another_machine_and_merges(tmp_path: Path) -> None:
    with LatencyTable(tmp_path / "ours.sqlite", DEVICE) as ours:
        ours.publish("a", ENTRY)
        ours.publish("b", ENTRY)
        ours.copy_to(tmp_path / "moved" / "copy.sqlite")
        with pytest.raises(InputError, match="exists"):
            ours.copy_to(tmp_path / "moved" / "copy.sqlite")
    with LatencyTable(tmp_path / "moved" / "copy.sqlite", DEVICE) as moved:
        assert moved.entries() == {"a": ENTRY, "b": ENTRY}
        moved.publish("c", ENTRY)
    assert [path.name for path in (tmp_path / "moved").iterdir() if not path.name.endswith(".lock")] == ["copy.sqlite"]
    with LatencyTable(tmp_path / "theirs.sqlite", DEVICE) as theirs:
        own = replace(ENTRY, latency_s=0.309)
        theirs.publish("a", own)
        assert theirs.merge(tmp_path / "moved" / "copy.sqlite") == 2
        assert theirs.merge(tmp_path / "moved" / "copy.sqlite") == 0
        assert theirs.entries() == {"a": own, "b": ENTRY, "c": ENTRY}
        with pytest.raises(InputError, match="there is no latency table"):
            theirs.merge(tmp_path / "nothing.sqlite")
    assert not (tmp_path / "nothing.sqlite").exists()


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "photos.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE photos (x)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(InputError, match="another program"):
        LatencyTable(path, DEVICE)
    with LatencyTable(tmp_path / "table.sqlite", DEVICE) as table, pytest.raises(InputError, match="another program"):
        table.merge(path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir() if file.suffix != ".lock") == [
        "photos.sqlite",
        "table.sqlite",
    ]


def test_a_later_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("latency_entries", "latency_table"):
        monkeypatch.setattr(f"backends.{module}.FORMAT", 2)
    LatencyTable(tmp_path / "table.sqlite", DEVICE).close()
    monkeypatch.undo()
    with pytest.raises(InputError, match="has format 2, made by a newer Trimtab"):
        LatencyTable(tmp_path / "table.sqlite", DEVICE)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrimtabError, match="set TRIMTAB_CACHE"):
        LatencyTable(tmp_path / "file" / "table.sqlite", DEVICE)


def test_a_table_removed_under_us_is_begun_anew(tmp_path: Path) -> None:
    with LatencyTable(tmp_path / "table.sqlite", DEVICE) as table:
        table.publish("a", ENTRY)
        (tmp_path / "table.sqlite").unlink()
        assert table.publish("b", ENTRY) == ENTRY
        assert table.get(["a"]) == {"a": ENTRY}
    with LatencyTable(tmp_path / "table.sqlite", DEVICE) as table:
        assert "b" in table.entries()
