import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from automl.errors import InputError, TrimtabError
from automl.run.store import EvaluationRow, SearchRow, Store
from search_spaces.objective import Evaluation, pareto_front
from search_spaces.policy import CompressionPolicy


def row(number: int, *, search: str = "ddpg-0", accuracy: float = 0.5, error: str | None = None) -> EvaluationRow:
    policy = CompressionPolicy.from_keep({"conv": 0.25 + number / 1000})
    return EvaluationRow(search, number, policy, Evaluation(accuracy, {"macs": 10.0}, 0.0, 0.1, error))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store(tmp_path / "trials.sqlite")
    opened.add_searches([SearchRow("ddpg-0", "ddpg", 0, 20), SearchRow("random-0", "random", 0, 20)])
    return opened


def test_what_is_added_is_read_back_in_order_of_number(store: Store) -> None:
    for number in (2, 0, 1):
        store.add(row(number, accuracy=number / 10))
    store.add(row(0, search="random-0"))
    found = list(store.evaluations("ddpg-0"))
    assert [(item.number, item.evaluation.accuracy) for item in found] == [(0, 0.0), (1, 0.1), (2, 0.2)]
    assert found[1] == row(1, accuracy=0.1)
    assert store.find("ddpg-0", 2) == row(2, accuracy=0.2)
    assert store.find("ddpg-0", 3) is None
    assert [item.search for item in store.evaluations()] == ["ddpg-0"] * 3 + ["random-0"]
    assert store.counts() == {"ddpg-0": 3, "random-0": 1}


def test_contents_do_not_depend_on_the_order_of_arrival(tmp_path: Path) -> None:
    dumps = []
    for name, order in (("a", (0, 1, 2)), ("b", (2, 0, 1))):
        store = Store(tmp_path / name)
        store.add_searches([SearchRow("ddpg-0", "ddpg", 0, 3)])
        for number in order:
            store.add(row(number))
        store.close()
        with sqlite3.connect(tmp_path / name) as connection:
            dumps.append(
                connection.execute("SELECT search, number, digest, policy, accuracy FROM evaluations").fetchall()
            )
    assert dumps[0] == dumps[1]


def test_an_evaluation_is_committed_when_add_returns(store: Store, tmp_path: Path) -> None:
    store.add(row(0))
    reader = Store.read(tmp_path / "trials.sqlite")
    assert [item.number for item in reader.evaluations()] == [0]
    store.add(row(1))  # a reader does not hold up the writer
    assert [item.number for item in reader.evaluations()] == [0, 1]
    reader.close()


def test_a_proposal_is_recorded_once(store: Store) -> None:
    store.add(row(0))
    with pytest.raises(TrimtabError, match="UNIQUE"):
        store.add(row(0))


def test_rewards_come_later(store: Store) -> None:
    store.add(row(0))
    store.add(row(1))
    store.set_rewards("ddpg-0", {1: 0.25})
    assert [item.reward for item in store.evaluations()] == [None, 0.25]


def test_what_a_searcher_took_comes_later_and_the_last_word_counts(store: Store) -> None:
    store.add(row(0))
    store.add(row(1))
    store.set_thinking("ddpg-0", {0: 0.5, 1: 0.25})
    store.set_thinking(
        "ddpg-0", {1: 0.125, 2: 9.0}
    )  # proposed and told anew after a kill; another is not evaluated yet
    assert [item.thinking_s for item in store.evaluations()] == [0.5, 0.125]


OLDER = {1: ("divergence", "share", "images", "thinking_s"), 2: ("thinking_s",)}
"""Columns that stores of each schema once lacked."""


def older(path: Path, schema: int) -> None:
    """A store as Trimtab once wrote it, with two evaluations."""
    store = Store(path)
    store.add_searches([SearchRow("ddpg-0", "ddpg", 0, 20)])
    for number in range(2):
        store.add(row(number))
    store.set_rewards("ddpg-0", {0: 0.25})
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP INDEX evaluations_at_a_glance")
        for column in OLDER[schema]:
            connection.execute(f"ALTER TABLE evaluations DROP COLUMN {column}")
        connection.execute(f"PRAGMA user_version = {schema}")
        connection.commit()


@pytest.mark.parametrize("schema", OLDER)
def test_a_store_of_before_is_read_as_whole_evaluations_and_not_written(tmp_path: Path, schema: int) -> None:
    path = tmp_path / "trials.sqlite"
    older(path, schema)
    before = path.read_bytes()
    reader = Store.read(path)
    assert list(reader.evaluations()) == [replace(row(0), reward=0.25), row(1)]
    assert reader.overview()[0]["done"] == 2
    reader.close()
    assert path.read_bytes() == before


@pytest.mark.parametrize("schema", OLDER)
def test_a_store_of_before_goes_on_as_one_of_today(tmp_path: Path, schema: int) -> None:
    path, today = tmp_path / "trials.sqlite", tmp_path / "today.sqlite"
    older(path, schema)
    Store(today).close()
    for number in (2, 3):  # opened twice: there is nothing left to do the second time
        store = Store(path)
        store.add(row(number))
        store.set_thinking("ddpg-0", {number: 0.5})
        store.close()
    expected = [replace(row(0), reward=0.25), row(1), *(replace(row(number), thinking_s=0.5) for number in (2, 3))]
    reader = Store.read(path)
    assert list(reader.evaluations()) == expected
    reader.close()
    schemas = []
    for file in (path, today):
        with closing(sqlite3.connect(file)) as connection:
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
            tables = connection.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall()
            schemas.append((connection.execute("PRAGMA user_version").fetchone(), tables))
    assert schemas[0] == schemas[1]


MIGRATE_UNTIL = """
import os, signal, sys
from pathlib import Path
from automl.run import store

class Connection(store.sqlite3.Connection):
    def execute(self, sql, *values):
        if sql.startswith(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(sql, *values)

connect = store.sqlite3.connect
store.sqlite3.connect = lambda *args, **options: connect(*args, **options, factory=Connection)
store.Store(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("statement", ["INSERT INTO evaluations", "COMMIT"])
def test_a_kill_in_the_midst_leaves_the_store_of_before(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "trials.sqlite"
    older(path, 1)
    killed = subprocess.run([sys.executable, "-c", MIGRATE_UNTIL, str(path), statement], check=False)
    assert killed.returncode == -signal.SIGKILL
    for opened in (Store.read, Store):
        store = opened(path)
        assert [item.number for item in store.evaluations()] == [0, 1]
        store.close()


def test_announcing_searches_again_changes_nothing(store: Store) -> None:
    store.finish("ddpg-0")
    store.add_searches([SearchRow("ddpg-0", "ddpg", 0, 99)])
    assert store.searches()[0] == SearchRow("ddpg-0", "ddpg", 0, 20, finished=True)


def test_the_failures_that_ended_a_search_are_forgotten_with_what_came_after(store: Store) -> None:
    for number in range(12):
        store.add(row(number, error="boom" if number in (1, 4, 5, 6, 11) else None))
    store.finish("ddpg-0", "3 evaluations failed in a row")
    store.forget_failures("ddpg-0", 3)
    assert [item.number for item in store.evaluations()] == [0, 1, 2, 3]
    assert not store.searches()[0].finished


def test_fewer_failures_are_results_like_others(store: Store) -> None:
    for number in range(5):
        store.add(row(number, error="boom" if number != 2 else None))
    store.finish("ddpg-0")
    store.forget_failures("ddpg-0", 3)
    assert len(list(store.evaluations())) == 5
    assert store.searches()[0].finished


def test_the_front_is_that_of_the_evaluations_without_the_failed_and_the_partial(store: Store) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(300):
        accuracy, macs = rng.integers(0, 30, 2).tolist()  # few values: many are equal
        error, share = ("boom" if number % 7 == 0 else None), (0.5 if number % 5 == 0 else 1.0)
        evaluation = Evaluation(float(accuracy), {"macs": float(macs), "params": 1.0}, 0.0, 0.1, error, share=share)
        rows.append(replace(row(number), evaluation=evaluation))
    store.add_all(rows)
    whole = [each for each in rows if each.evaluation.error is None and each.evaluation.share == 1.0]
    expected = pareto_front((each.evaluation.cost["macs"], each.evaluation.accuracy) for each in whole)
    assert store.front("macs") == [whole[index] for index in expected]
    assert store.front("latency_s") == []


def test_figures_are_the_evaluations_without_their_policies(store: Store) -> None:
    store.add_all([row(0), row(1, error="boom"), row(2, search="random-0")])
    store.set_rewards("ddpg-0", {0: 0.25})
    named = [(each.search, each.number, each.evaluation, each.reward, each.thinking_s) for each in store.evaluations()]
    assert [(row.search, row.number, row.evaluation, row.reward, row.thinking_s) for row in store.figures()] == named


def test_a_twin_is_the_same_policy_on_as_many_images_that_did_not_fail(store: Store) -> None:
    partial = replace(row(0), evaluation=replace(row(0).evaluation, share=0.5))
    store.add_all([partial, row(1, error="boom"), row(2), replace(row(2), search="random-0")])
    assert store.twin(row(0).policy.digest, 0.5) == partial
    assert store.twin(row(0).policy.digest, 1.0) is None
    assert store.twin(row(1).policy.digest, 1.0) is None
    assert store.twin(row(2).policy.digest, 1.0) == row(2)


def test_what_the_best_costs_is_that_of_the_first_of_equals(store: Store) -> None:
    def one(number: int, accuracy: float, macs: float, violation: float = 0.0) -> EvaluationRow:
        return replace(row(number), evaluation=Evaluation(accuracy, {"macs": macs}, violation, 0.1))

    assert store.costs_of_best("ddpg-0") == {}
    store.add_all([one(0, 0.5, 1.0), one(1, 0.75, 2.0), one(2, 0.75, 3.0), one(3, 0.9, 4.0, 0.1)])
    assert store.costs_of_best("ddpg-0")["macs"] == 2.0


def test_a_damaged_policy_is_refused_where_it_is_read(store: Store, tmp_path: Path) -> None:
    store.add_all([row(0), row(1)])
    with sqlite3.connect(tmp_path / "trials.sqlite") as connection:
        connection.execute("UPDATE evaluations SET policy = 'what?' WHERE number = 1")
    assert store.find("ddpg-0", 0) == row(0)
    assert len(list(store.figures())) == 2
    with pytest.raises(InputError, match="is damaged: evaluation 1 of 'ddpg-0'"):
        list(store.evaluations())


def test_a_closed_store_is_one_plain_file(store: Store, tmp_path: Path) -> None:
    store.add(row(0))
    store.close()
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")) == ["trials.sqlite"]


def test_one_process_writes(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("automl.run.store.LOCK_WAIT_S", 0.1)
    with pytest.raises(TrimtabError, match="being written by another process"):
        Store(tmp_path / "trials.sqlite")
    store.close()
    Store(tmp_path / "trials.sqlite").close()


def other_program(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (x)")


def later_version(path: Path) -> None:
    Store(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_bytes(b"no database at all, but long enough to look at" * 40), "is no store"),
        (other_program, "another program"),
        (later_version, "schema 99, made by a newer Trimtab"),
        (lambda path: path.mkdir(), "is no store"),
    ],
)
def test_files_that_are_no_store_are_refused(tmp_path: Path, make: object, said: str) -> None:
    path = tmp_path / "trials.sqlite"
    make(path)  # type: ignore[operator]
    for opened in (Store, Store.read):
        with pytest.raises(InputError, match=said):
            opened(path)


def test_a_store_that_is_not_there_cannot_be_read_and_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no store"):
        Store.read(tmp_path / "trials.sqlite")
    assert not list(tmp_path.iterdir())


def test_a_torn_file_is_refused_or_read_but_never_a_traceback(store: Store, tmp_path: Path) -> None:
    for number in range(20):
        store.add(row(number))
    store.close()
    whole = (tmp_path / "trials.sqlite").read_bytes()
    for length in range(0, len(whole), 997):
        torn = tmp_path / f"torn{length}"
        torn.write_bytes(whole[:length])
        with suppress(InputError):
            reader = Store.read(torn)
            try:
                list(reader.evaluations())
            finally:
                reader.close()
