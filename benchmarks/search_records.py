"""What a benchmark's searches leave behind: a journal each, and one memory of what policies were worth."""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from stretches import Stop

from automl.baseline import state_digest
from automl.cache import atomic_path, digest_of
from automl.costs.pricing import price
from automl.errors import InputError, RunStoppedError
from automl.problem import Problem
from backends.lease import shared_lease
from search_spaces.objective import Evaluation, violation
from search_spaces.policy import CompressionPolicy


class Journal:
    """The file of a search: a line that says whose it is, one for each evaluation, now and then one of what the
    searcher itself took, and one that says how it ended. A line that a kill cut off is dropped.

    Args:
        path: of the file.
        key: of all that decides what the search finds.

    Attributes:
        lines: of the evaluations, in order.
        thinking: seconds of the searcher, by number of the proposal.
        end: how it ended; None where it has not.

    Raises:
        InputError: the file is another search's.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.snapshot = path.with_suffix(".snapshot")
        self.lines: list[dict[str, Any]] = []
        self.thinking: dict[int, float] = {}
        self.end: dict[str, Any] | None = None
        whole = b""
        if self.path.exists():
            content = self.path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
        entries = [json.loads(line) for line in whole.splitlines()]
        if entries and entries[0] != {"search": key}:
            raise InputError(f"{str(self.path)!r} holds a search with other options; take a new folder")
        self._length = len(whole)
        self._key = key
        for entry in entries[1:]:
            self._take(entry)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Append an entry; the first makes the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.truncate(self._length)  # of a line that a kill cut off
            entries = [entry] if self._length else [{"search": self._key}, entry]
            self._length += file.write(b"".join(json.dumps(each).encode() + b"\n" for each in entries))
        self._take(dict(entry))

    def thought(self, seconds: Mapping[int, float]) -> None:
        """Write down what the searcher took for some proposals."""
        if seconds:
            self.add({"thinking": {str(number): taken for number, taken in seconds.items()}})

    def _take(self, entry: dict[str, Any]) -> None:
        if "ended" in entry:
            self.end = entry
        elif "thinking" in entry:
            self.thinking |= {int(number): taken for number, taken in entry["thinking"].items()}
        else:
            self.lines.append(entry)

    def read_snapshot(self) -> bytes | None:
        return self.snapshot.read_bytes() if self.snapshot.exists() else None

    def write_snapshot(self, snapshot: bytes) -> None:
        with atomic_path(self.snapshot) as temporary:
            temporary.write_bytes(snapshot)


def evaluation_of(line: Mapping[str, Any]) -> Evaluation:
    """The evaluation of a journal's line."""
    known = {each.name for each in fields(Evaluation)}
    return Evaluation(**{name: value for name, value in line.items() if name in known})


class SharedEvaluations:
    """What policies are worth, remembered for all searches of a folder.

    Args:
        file: an SQLite database.
        problem: whose policies these are.
    """

    def __init__(self, file: Path, problem: Problem) -> None:
        self._file = file
        self._evaluator = problem.evaluator()
        config = problem.config
        self._subject = digest_of(
            {
                "model": state_digest(problem.model),
                "data": problem.data.digest,
                "compression": config.compression.model_dump(),
                "metric": config.metric,
            }
        )
        self._constraints = problem.constraints
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._connect() as database:
            database.execute("CREATE TABLE IF NOT EXISTS evaluations (key TEXT PRIMARY KEY, found TEXT)")

    def __call__(self, policy: CompressionPolicy, cost: Mapping[str, float], share: float) -> Evaluation:
        """The evaluation of a policy of that cost on a share of the images."""
        key = f"{self._subject} {policy.digest} {share:.6f}"
        with self._connect() as database:
            row = database.execute("SELECT found FROM evaluations WHERE key = ?", (key,)).fetchone()
        if row is not None:
            found = evaluation_of({"cost": {}, "violation": 0.0, **json.loads(row[0])})
            return replace(found, cost=cost, violation=violation(cost, self._constraints))
        with shared_lease():
            found = self._evaluator(policy, cost, share)
        remembered = {each.name: getattr(found, each.name) for each in fields(found)}
        del remembered["cost"], remembered["violation"]
        with self._connect() as database:
            database.execute("INSERT OR IGNORE INTO evaluations VALUES (?, ?)", (key, json.dumps(remembered)))
        return found

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._file, timeout=60)) as database, database:
            yield database


class Recorded:
    """The evaluators of a search: what stands in its journal is not evaluated again.

    Args:
        journal: of the search.
        problem: that is searched.
        evaluate: a policy of a cost.
        stop: whether to stop before the next evaluation.
    """

    def __init__(self, journal: Journal, problem: Problem, evaluate: SharedEvaluations, stop: Stop) -> None:
        self._journal, self._problem, self._evaluate, self._stop = journal, problem, evaluate, stop
        self._pending: dict[int, tuple[CompressionPolicy, float]] = {}

    def submit(self, number: int, policy: CompressionPolicy, share: float) -> None:
        self._pending[number] = policy, share

    def result(self, number: int) -> Evaluation:
        """See `automl.orchestration.search_loop.Evaluators`.

        Raises:
            InputError: the journal holds another policy, of another version of the program.
        """
        policy, share = self._pending.pop(number)
        lines = self._journal.lines
        if number < len(lines):
            if lines[number]["digest"] != policy.digest:
                raise InputError(f"{str(self._journal.path)!r} was made by another version; take a new folder")
            return evaluation_of(lines[number])
        if self._stop():
            raise RunStoppedError("the stretch is over")
        found = self._evaluate(policy, price(self._problem.graph, policy, self._problem.backend), share)
        line = {"digest": policy.digest, **{each.name: getattr(found, each.name) for each in fields(found)}}
        best = max((each.accuracy for each in map(evaluation_of, lines) if each.feasible), default=-1.0)
        if found.feasible and found.accuracy > best:
            line["policy"] = policy.to_json()
        self._journal.add(line)
        return found

    def save(self, rewards: Mapping[int, float], snapshot: bytes | None) -> None:
        if snapshot is not None:
            self._journal.write_snapshot(snapshot)
