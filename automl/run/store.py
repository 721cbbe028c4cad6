"""The record of every evaluation: one SQLite file a run, written by one process, readable by any.

What stands here is the truth of a run. An evaluation is committed, and on disk, before the searcher learns of it; a
resumed run reads it back instead of evaluating again. Nothing but `seconds`, `thinking_s` and `finished_at` depends on
timing.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from automl.errors import InputError, TrimtabError
from automl.run.store_schema import create, prepare, transaction
from search_spaces.objective import SHARE_ROUNDING, Evaluation
from search_spaces.policy import CompressionPolicy

LOCK_WAIT_S = 30.0
"""The actor of a driver that was killed may live on for seconds; its successor waits."""

STOPPED = "no further proposal was worth its evaluation"
"""Why a search ends by itself before its last evaluation (see `automl.searchers.base.Searcher.finished`)."""


@dataclass(frozen=True, slots=True)
class SearchRow:
    """One search of a run: an algorithm with a seed."""

    name: str
    algorithm: str
    seed: int
    evaluations: int
    finished: bool = False
    error: str | None = None

    def stopped(self, spent: float) -> bool:
        """Whether it ended by itself, having made so many evaluations, in whole ones, with at least one to spare."""
        return stopped_early(self.finished, self.error, spent, self.evaluations)


def stopped_early(finished: bool, error: str | None, spent: float, planned: int) -> bool:
    """Whether a search ended by itself, with at least one whole evaluation to spare."""
    return finished and error is None and spent < planned - 1.0 + SHARE_ROUNDING


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One evaluated proposal of a search, and what the searcher made of it in how many seconds of its own."""

    search: str
    number: int
    policy: CompressionPolicy
    evaluation: Evaluation
    reward: float | None = None
    thinking_s: float | None = None


@dataclass(frozen=True, slots=True)
class FiguresRow:
    """An `EvaluationRow` without its policy: what there are to be a million of, and is read in seconds."""

    search: str
    number: int
    evaluation: Evaluation
    reward: float | None
    thinking_s: float | None
    finished_at: float
    """Seconds since 1970."""


class Store:
    """The evaluations of a run. One process writes; others open it with `Store.read`.

    Args:
        path: the SQLite file, made where there is none.

    Raises:
        InputError: the file is no Trimtab store, or one of a newer version. One of an older version is brought to this
            one where it is opened for writing, and read as it is otherwise.
    """

    def __init__(self, path: Path, *, _read_only: bool = False) -> None:
        self._path = path
        self._lock: FileLock | None = None
        if not _read_only:
            self._lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_WAIT_S)
            try:
                self._lock.acquire()
            except Timeout:
                raise TrimtabError(f"{str(path)!r} is being written by another process") from None
        mode = "ro" if _read_only else "rw"
        try:
            if not _read_only and not path.exists():
                create(path)
            self._connection = sqlite3.connect(
                f"{path.resolve().as_uri()}?mode={mode}", uri=True, timeout=30, check_same_thread=False
            )
            self._connection.isolation_level = None  # transactions are written out below
            prepare(self._connection, path, read_only=_read_only)
        except sqlite3.Error as error:
            raise InputError(f"{str(path)!r} is no store of evaluations: {error}") from None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Open for reading only, also while a run writes; InputError where the file is none."""
        return cls(path, _read_only=True)

    def _transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        return transaction(self._connection, self._path)

    def close(self) -> None:
        """Let go of the file; the writer leaves it whole, without a write-ahead log beside it."""
        if self._lock is not None:
            with suppress(sqlite3.OperationalError):  # someone reads at this moment: the log stays, and is as good
                self._connection.execute("PRAGMA busy_timeout = 1000")
                self._connection.execute("PRAGMA journal_mode = DELETE")
        self._connection.close()
        if self._lock is not None:
            self._lock.release()

    def add_searches(self, searches: list[SearchRow]) -> None:
        """Announce the searches of a run; those that stand there stay as they are."""
        with self._transaction() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO searches (name, algorithm, seed, evaluations) VALUES (?, ?, ?, ?)",
                [(row.name, row.algorithm, row.seed, row.evaluations) for row in searches],
            )

    def searches(self) -> list[SearchRow]:
        """Every search, by name."""
        rows = self._rows("SELECT name, algorithm, seed, evaluations, finished, error FROM searches ORDER BY name")
        return [SearchRow(name, algorithm, seed, n, bool(done), why) for name, algorithm, seed, n, done, why in rows]

    def finish(self, search: str, error: str | None = None) -> None:
        """The search made all its evaluations, or stopped early for a reason."""
        with self._transaction() as connection:
            connection.execute("UPDATE searches SET finished = 1, error = ? WHERE name = ?", (error, search))

    def add(self, row: EvaluationRow) -> None:
        """Commit an evaluation; it is on disk when this returns.

        Raises:
            TrimtabError: that proposal stands there already, or the disk is full.
        """
        self.add_all([row])

    def add_all(self, rows: Iterable[EvaluationRow]) -> None:
        """Commit evaluations, all of them or none; see `add`."""
        with self._transaction() as connection:
            connection.executemany(
                "INSERT INTO evaluations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", map(_columns, rows)
            )

    def set_rewards(self, search: str, rewards: Mapping[int, float]) -> None:
        """Note what the searcher made of its evaluations, by proposal number."""
        with self._transaction() as connection:
            connection.executemany(
                "UPDATE evaluations SET reward = ? WHERE search = ? AND number = ?",
                [(reward, search, number) for number, reward in rewards.items()],
            )

    def set_thinking(self, search: str, seconds: Mapping[int, float]) -> None:
        """Note how long the searcher took to propose and to learn, by proposal number."""
        with self._transaction() as connection:
            connection.executemany(
                "UPDATE evaluations SET thinking_s = ? WHERE search = ? AND number = ?",
                [(spent, search, number) for number, spent in seconds.items()],
            )

    def find(self, search: str, number: int) -> EvaluationRow | None:
        """That proposal's evaluation, None where it has not been evaluated."""
        return next(self._evaluations("WHERE search = ? AND number = ?", (search, number)), None)

    def evaluations(self, search: str | None = None) -> Iterator[EvaluationRow]:
        """Evaluations by search and number: of one search, or of all."""
        if search is None:
            return self._evaluations("", ())
        return self._evaluations("WHERE search = ?", (search,))

    def figures(self, search: str | None = None, since: int = 0) -> Iterator[FiguresRow]:
        """Evaluations by search and number, without their policies: of one search, from a number on, or of all."""
        where, values = ("", ()) if search is None else ("WHERE search = ? AND number >= ?", (search, since))
        rows = self._rows(
            f"SELECT search, number, reward, thinking_s, finished_at, {_FIGURES} FROM evaluations {where} "
            "ORDER BY search, number",
            values,
        )
        for name, number, reward, thinking_s, finished_at, *found in rows:
            with self._intact(name, number):
                told = (_known(reward), _known(thinking_s), datetime.fromisoformat(finished_at).timestamp())
                row = FiguresRow(name, int(number), _evaluation(*found), *told)
            yield row

    def twin(self, digest: str, share: float) -> EvaluationRow | None:
        """The first evaluation of a policy on that share of the images that did not fail; None where there is none."""
        found = self._evaluations("WHERE digest = ? AND share = ? AND error IS NULL", (digest, share))
        return next(found, None)

    def front(self, metric: str) -> list[EvaluationRow]:
        """The Pareto front of accuracy and a cost, by rising cost: of all evaluations on all images that did not fail.

        Args:
            metric: the cost; what was not priced in it is left out.
        """
        rows = self._rows(
            "SELECT search, number FROM ("
            "SELECT search, number, accuracy, row_number() OVER least AS place, max(accuracy) OVER ("
            "ORDER BY price, accuracy DESC, search, number ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS best "
            "FROM (SELECT search, number, accuracy, json_extract(cost, ?) AS price FROM evaluations "
            "WHERE error IS NULL AND share = 1.0) WHERE price IS NOT NULL "
            "WINDOW least AS (ORDER BY price, accuracy DESC, search, number)) "
            "WHERE best IS NULL OR accuracy > best ORDER BY place",
            (f'$."{metric}"',),
        )
        found = [self.find(search, number) for search, number in rows]
        return [row for row in found if row is not None]

    def counts(self) -> dict[str, int]:
        """Number of evaluations of each search that has any."""
        return {str(name): int(n) for name, n in self._rows("SELECT search, count(*) FROM evaluations GROUP BY search")}

    def overview(self) -> list[dict[str, Any]]:
        """Each search with how far it is and what its best feasible accuracy was, JSON-ready.

        Of its evaluations, `whole` are those on all images that did not fail, `feasible` of these those within the
        budgets.
        """
        rows = self._rows(
            "SELECT s.name, s.evaluations, s.finished, s.error, coalesce(sum(e.share), 0), count(e.number), "
            "coalesce(sum(e.error IS NULL AND e.share = 1.0), 0), coalesce(sum(e.feasible), 0), count(e.error), "
            "max(CASE WHEN e.feasible THEN e.accuracy END), max(e.reward) "
            "FROM searches s LEFT JOIN evaluations e ON e.search = s.name GROUP BY s.name ORDER BY s.name"
        )
        counted = ("done", "count", "whole", "feasible", "failures")
        keys = ("name", "evaluations", "finished", "error", *counted, "best_accuracy", "best_reward")
        found = [dict(zip(keys, row, strict=True)) for row in rows]
        ended = {row.name: row for row in self.searches()}
        stopped = {each["name"]: STOPPED if ended[each["name"]].stopped(each["done"]) else None for each in found}
        return [{**each, "finished": bool(each["finished"]), "stopped": stopped[each["name"]]} for each in found]

    def costs_of_best(self, search: str) -> Mapping[str, float]:
        """What the search's most accurate feasible policy costs, of equals the first; empty where it has none."""
        which = "SELECT number FROM evaluations WHERE search = ? AND feasible ORDER BY accuracy DESC, number LIMIT 1"
        best = self._evaluations(f"WHERE search = ? AND number = ({which})", (search, search))
        return next((row.evaluation.cost for row in best), {})

    def forget_failures(self, search: str, in_a_row: int) -> None:
        """Where a search has so many failures in a row, drop them and all that came of them: it may try again.

        What was proposed after them was proposed in the knowledge of them, and goes, too.
        """
        streak: list[int] = []
        failed = "SELECT number FROM evaluations WHERE search = ? AND error IS NOT NULL ORDER BY 1"
        for (number,) in self._rows(failed, (search,)):
            streak = [*streak, number] if streak and number == streak[-1] + 1 else [number]
            if len(streak) == in_a_row:
                break
        else:
            return
        with self._transaction() as connection:
            connection.execute("DELETE FROM evaluations WHERE search = ? AND number >= ?", (search, streak[0]))
            connection.execute("UPDATE searches SET finished = 0, error = NULL WHERE name = ?", (search,))

    def _evaluations(self, where: str, values: tuple[object, ...]) -> Iterator[EvaluationRow]:
        rows = self._rows(
            f"SELECT search, number, policy, reward, thinking_s, {_FIGURES} FROM evaluations {where} "
            "ORDER BY search, number",
            values,
        )
        for search, number, policy, reward, thinking_s, *found in rows:
            with self._intact(search, number):
                policy = CompressionPolicy.from_json(policy)
                row = EvaluationRow(search, int(number), policy, _evaluation(*found), reward, _known(thinking_s))
            yield row

    @contextmanager
    def _intact(self, search: Any, number: Any) -> Iterator[None]:
        """InputError where a row does not hold what it should."""
        try:
            yield
        except (AttributeError, TypeError, ValueError, OverflowError, RecursionError, InputError):
            raise InputError(f"{str(self._path)!r} is damaged: evaluation {number!r} of {search!r}") from None

    def _rows(self, sql: str, values: tuple[object, ...] = ()) -> Iterator[tuple[Any, ...]]:
        try:
            # "yield from" would close the cursor of a generator left behind, when the store may be closed already
            for row in self._connection.execute(sql, values):  # noqa: UP028
                yield row
        except sqlite3.Error as error:
            raise InputError(f"{str(self._path)!r} cannot be read: {error}") from None


def _columns(row: EvaluationRow) -> tuple[object, ...]:
    found = row.evaluation
    return (
        row.search,
        row.number,
        row.policy.digest,
        row.policy.to_json(compact=True),
        found.accuracy,
        row.reward,
        found.divergence,
        found.share,
        found.images,
        json.dumps(dict(found.cost), sort_keys=True),
        found.violation,
        found.feasible,
        found.error,
        found.seconds,
        row.thinking_s,
        datetime.now(UTC).isoformat(timespec="milliseconds"),
    )


_FIGURES = "accuracy, cost, violation, seconds, error, divergence, share, images"
"""Columns, in the order of `_evaluation`."""


def _evaluation(
    accuracy: Any, cost: str, violation: Any, seconds: Any, error: str | None, divergence: Any, share: Any, images: Any
) -> Evaluation:
    figures = (float(accuracy), _costs(cost), float(violation), float(seconds))
    return Evaluation(*figures, error, _known(divergence), float(share), int(images))


def _known(value: Any) -> float | None:
    return None if value is None else float(value)


def _costs(text: str) -> dict[str, float]:
    return {str(metric): float(value) for metric, value in json.loads(text).items()}
