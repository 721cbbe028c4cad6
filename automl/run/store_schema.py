"""The tables of a store of evaluations, and how a store of an older version becomes one of this."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from automl.errors import InputError, TrimtabError
from search_spaces.versions import require_version

APPLICATION_ID = 0x7472696D  # "trim"
SCHEMA_VERSION = 2

_SEARCHES = """
CREATE TABLE searches (
    name TEXT PRIMARY KEY,          -- "<algorithm>-<seed>"
    algorithm TEXT NOT NULL,
    seed INTEGER NOT NULL,
    evaluations INTEGER NOT NULL,   -- how many it is to make
    finished INTEGER NOT NULL DEFAULT 0,
    error TEXT                      -- why it stopped early
) WITHOUT ROWID
"""
_EVALUATIONS = """
CREATE TABLE evaluations (
    search TEXT NOT NULL REFERENCES searches (name),
    number INTEGER NOT NULL,        -- of the proposal, from 0
    digest TEXT NOT NULL,           -- of the policy
    policy TEXT NOT NULL,           -- JSON
    accuracy REAL NOT NULL,         -- of the search-validation slice, before fine-tuning
    reward REAL,                    -- what the searcher made of it; null until it was told
    divergence REAL,                -- from what the uncompressed network answers, nats; null where not known
    share REAL NOT NULL,            -- of the validation images
    images INTEGER NOT NULL,        -- forwarded for it
    cost TEXT NOT NULL,             -- JSON: metric -> value
    violation REAL NOT NULL,        -- cost / limit - 1 where above the limit, of the budget that is broken most
    feasible INTEGER NOT NULL,
    error TEXT,
    seconds REAL NOT NULL,
    thinking_s REAL,                -- that the searcher took to propose it and to learn from it; null until then
    finished_at TEXT NOT NULL,      -- UTC
    PRIMARY KEY (search, number)
) WITHOUT ROWID
"""

_INDICES = (
    "CREATE INDEX IF NOT EXISTS evaluations_by_digest ON evaluations (digest)",
    # All that overviews and fronts look at: policies are a hundred times as large
    "CREATE INDEX IF NOT EXISTS evaluations_at_a_glance ON evaluations "
    "(search, number, accuracy, reward, share, feasible, error, cost)",
)

_SINCE = {"divergence": "NULL", "share": "1.0", "images": "0", "thinking_s": "NULL"}
"""Columns that schema 1 and, of the last, early stores of schema 2 lack, and what they mean there: all evaluations were
on all images, of which nobody counted how often."""


def create(path: Path) -> None:
    """Make an empty store: whoever reads it meanwhile finds a whole one or none.

    Raises:
        sqlite3.Error, OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)  # of a process that was killed
    with closing(sqlite3.connect(temporary, isolation_level=None)) as connection, transaction(connection, path):
        connection.execute(_SEARCHES)
        connection.execute(_EVALUATIONS)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    temporary.replace(path)


def prepare(connection: sqlite3.Connection, path: Path, *, read_only: bool) -> None:
    """See that the tables are those of a store, and complete them.

    Args:
        connection: to the file, with transactions written out.
        path: of the file, for messages.
        read_only: an older store is then seen as one of this version, and left as it is.

    Raises:
        InputError: the file is another program's, or a newer version's.
    """
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION_ID:
        raise InputError(f"{str(path)!r} is an SQLite file of another program")
    known = range(1, SCHEMA_VERSION + 1)
    require_version(repr(str(path)), version, known, "start a new run", called="schema")
    _complete(connection, path, read_only)
    if not read_only:
        connection.execute("PRAGMA journal_mode = WAL")  # readers and the writer do not wait for each other
        for index in _INDICES:
            connection.execute(index)
    connection.execute("PRAGMA synchronous = FULL")  # a commit is on disk, also after a power cut
    connection.execute("PRAGMA foreign_keys = ON")


@contextmanager
def transaction(connection: sqlite3.Connection, path: Path) -> Iterator[sqlite3.Connection]:
    """All that is done in the block, or nothing; TrimtabError where it cannot be written."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise TrimtabError(f"{str(path)!r} cannot be written: {error}") from None


def _complete(connection: sqlite3.Connection, path: Path, read_only: bool) -> None:
    """Give the evaluations of an older store the columns that it lacks: in the file, or for this reader alone."""
    columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(evaluations)")]
    lacking = {name: value for name, value in _SINCE.items() if name not in columns}
    if not columns or not lacking:
        return
    if read_only:
        added = ", ".join(f"{value} AS {name}" for name, value in lacking.items())
        connection.execute(f"CREATE TEMP VIEW evaluations AS SELECT *, {added} FROM main.evaluations")
        return
    with transaction(connection, path):  # one, so that a kill leaves the old store or the new one
        connection.execute("ALTER TABLE evaluations RENAME TO older")
        connection.execute(_EVALUATIONS)
        into, taken = ", ".join([*columns, *lacking]), ", ".join([*columns, *lacking.values()])
        connection.execute(f"INSERT INTO evaluations ({into}) SELECT {taken} FROM older")
        connection.execute("DROP TABLE older")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
