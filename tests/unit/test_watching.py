"""What `trimtab watch` reads of a run, and how it shows it."""

import json
import threading
from pathlib import Path

import pytest
from rich.console import Console

from automl.cli import main
from automl.run.directory import RunDirectory
from automl.run.limits import read_limits, write_limits
from automl.run.store import EvaluationRow, FiguresRow, SearchRow, Store
from automl.run.watching import RATE_OVER_S, RunWatch, SearchView, rate
from automl.run.whereabouts import FILE, Whereabouts
from automl.testing.runs import make_run
from automl.watch_tables import run_tables, sparkline
from search_spaces.objective import Constraint, Evaluation
from search_spaces.policy import CompressionPolicy

SEARCH = "ddpg-0"


def figures(number: int, accuracy: float, violation: float = 0.0, at: float = 0.0) -> FiguresRow:
    return FiguresRow(SEARCH, number, Evaluation(accuracy, {"macs": 50.0}, violation, 0.1), None, None, at)


def shown(view: object) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(view)
    return captured.get()


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = make_run(tmp_path / "run", evaluations=60)
    write_limits(directory.path, [Constraint("macs", 5_100_000.0), Constraint("latency_s", float("inf"))])
    return directory


def test_a_run_is_seen_as_its_record_has_it(run: RunDirectory) -> None:
    view = RunWatch(run).look()
    store = Store.read(run.store_file)
    for search in view.searches:
        record = list(store.evaluations(search.row["name"]))
        best = max((row.evaluation.accuracy for row in record if row.evaluation.feasible), default=None)
        assert search.read == len(record)
        assert (search.best and search.best.evaluation.accuracy) == best
        assert search.feasible_share == sum(row.evaluation.feasible for row in record) / len(record)
        so_far = [row.evaluation.accuracy if row.evaluation.feasible else -1.0 for row in record]
        expected = [max(so_far[: number + 1]) for number in range(len(record))]
        assert [-1.0 if value is None else value for value in search.curve(1000)] == expected
        assert search.curve(7)[-1] == best
    store.close()
    assert view.over
    assert view.limits == {"macs": 5_100_000.0}
    text = shown(run_tables(view))
    assert "ddpg-0" in text
    assert "60/60" in text
    assert "at most 5,100,000 MACs" in text


def test_a_second_look_reads_on_and_waits_for_one_that_was_overtaken(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", evaluations=60, state="running")
    directory.store_file.unlink()
    store = Store(directory.store_file)
    store.add_searches([SearchRow(SEARCH, "ddpg", 0, 60)])
    watched = RunWatch(directory)

    def add(number: int, accuracy: float, violation: float = 0.0) -> None:
        policy = CompressionPolicy({}, str(number))
        store.add(EvaluationRow(SEARCH, number, policy, Evaluation(accuracy, {"macs": 1.0}, violation, 0.1)))

    with directory.lock():
        assert watched.look().searches[0].curve(5) == []
        add(0, 0.5)
        add(2, 0.9)
        assert watched.look().searches[0].curve(5) == [0.5]
        add(1, 0.99, violation=0.5)
        seen = watched.look()
        assert seen.searches[0].curve(5) == [0.5, 0.5, 0.9]
        assert seen.searches[0].feasible_share == 2 / 3
        assert not seen.over
        assert [each.number for each in seen.last] == [2, 1, 0] or len(seen.last) == 3
    assert watched.look().over  # it says that it is running, and nobody drives it
    store.close()


def test_what_a_resumed_run_forgot_is_forgotten(run: RunDirectory) -> None:
    watched = RunWatch(run)
    assert watched.look().searches[0].read == 60
    import sqlite3

    connection = sqlite3.connect(run.store_file)
    connection.execute("DELETE FROM evaluations WHERE search = ? AND number >= 10", (SEARCH,))
    connection.commit()
    connection.close()
    assert watched.look().searches[0].read == 10


def test_the_rate_is_that_of_the_last_minute() -> None:
    old = [figures(number, 0.5, at=0.0) for number in range(100)]
    new = [figures(number, 0.5, at=1000.0 + number) for number in range(30)]
    assert rate(old + new, now=1030.0) == 30 / RATE_OVER_S
    assert rate(new, now=1030.0) == 1.0
    assert rate(old, now=1030.0) == 0.0


def test_a_curve_is_drawn_from_its_least_to_its_greatest_value() -> None:
    assert sparkline([]) == ""
    assert sparkline([None, None]) == "  "
    assert sparkline([0.7, 0.7]) == "▄▄"
    assert sparkline([None, 0.1, 0.2]) == " ▁█"
    view = SearchView({"whole": 0, "feasible": 0})
    assert view.feasible_share is None
    view.add([figures(0, 0.2, violation=1.0), figures(1, 0.5), figures(2, 0.4), figures(3, 0.6)])
    assert view.curve(4) == [None, 0.5, 0.5, 0.6]
    assert view.curve(2) == [0.5, 0.6]


def test_watch_shows_a_run_once_or_until_it_ends(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(run.path), "--once"]) == 0
    once = capsys.readouterr().out
    assert main(["watch", str(run.path), "--every", "0.1"]) == 0
    assert capsys.readouterr().out == once + "\n"
    assert main(["watch", str(run.path), "--every", "0"]) == 2
    assert "--every" in capsys.readouterr().err


def test_watch_ends_with_the_run_and_prints_what_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = make_run(tmp_path / "run", evaluations=6, state="running")
    driving, over = threading.Event(), threading.Event()

    def drive() -> None:
        with directory.lock():
            driving.set()
            over.wait(30.0)

    driver = threading.Thread(target=drive)
    driver.start()
    driving.wait(30.0)
    threading.Timer(1.0, over.set).start()
    assert main(["watch", str(directory.path), "--every", "0.1"]) == 0
    driver.join()
    out = capsys.readouterr().out
    assert "run: running, fine-tuning" in out
    assert "run: unfinished" in out


def test_a_run_that_vanishes_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "no run directory" in said


def test_a_store_that_is_no_store_is_one_line(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    run.store_file.write_bytes(b"not a database at all, but long enough to be read as one" * 100)
    assert main(["watch", str(run.path), "--once"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_dashboard_command_says_what_is_where(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboard"]) == 0
    assert "compose.yaml" in capsys.readouterr().out
    Whereabouts(1, "here", "http://127.0.0.1:8265", ("127.0.0.1:9",), "/tmp/x/token").write(run.path)
    assert main(["dashboard", str(run.path)]) == 0
    assert "nobody drives the run" in capsys.readouterr().out  # who wrote that was killed
    with run.lock():
        assert main(["dashboard", str(run.path)]) == 0
        out = capsys.readouterr().out
    assert "http://127.0.0.1:8265" in out
    assert "/tmp/x/token" in out
    assert "http://127.0.0.1:9/metrics" in out
    assert main(["dashboard", str(run.path), "--open"]) == 1
    assert "--dashboard" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", '{"pid": 1}', json.dumps({"pid": "x", "host": 1, "metrics": 2})])
def test_damaged_notes_of_a_run_are_one_line(
    run: RunDirectory, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.path / FILE).write_text(content)
    with run.lock():
        assert main(["dashboard", str(run.path)]) == 2
    assert "damaged" in capsys.readouterr().err
    (run.path / "limits.json").write_text("[1]")
    assert main(["watch", str(run.path), "--once"]) == 2
    assert "limits.json" in capsys.readouterr().err


def test_limits_are_absent_before_the_search(tmp_path: Path) -> None:
    assert read_limits(tmp_path) == {}
