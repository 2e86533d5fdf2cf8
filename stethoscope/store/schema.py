"""The tables of the run store and how an older file becomes the newest: ordered migrations, each applied once.

The file carries the number of migrations that it has seen in SQLite's `user_version`; 0 is an empty file. A
migration is never changed after it was released: the next change of the tables is a new one at the end.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from stethoscope.errors import ResourceError, StoreError, UserError

LOCK_WAIT_S = 30.0

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE recipes (recipe_id TEXT PRIMARY KEY, body TEXT NOT NULL, created_at REAL NOT NULL)",
        """CREATE TABLE runs (
            run_id TEXT PRIMARY KEY, kind TEXT NOT NULL, spec_id TEXT NOT NULL, spec TEXT NOT NULL,
            state TEXT NOT NULL, created_at REAL NOT NULL, elapsed_s REAL, result_id TEXT, error TEXT,
            title TEXT, pinned INTEGER NOT NULL DEFAULT 0)""",
        "CREATE INDEX runs_by_spec ON runs (spec_id, state, created_at)",
        "CREATE INDEX runs_by_time ON runs (created_at)",
    ),
    (
        """CREATE TABLE items (
            evaluation_id TEXT NOT NULL, problem_id TEXT NOT NULL, digest TEXT NOT NULL, body TEXT NOT NULL,
            PRIMARY KEY (evaluation_id, problem_id))""",
    ),
    ("CREATE TABLE certificates (evaluation_id TEXT PRIMARY KEY, digest TEXT NOT NULL, body TEXT NOT NULL)",),
    (
        "CREATE TABLE predictions (prediction_id TEXT PRIMARY KEY, body TEXT NOT NULL, created_at REAL NOT NULL)",
        """CREATE TRIGGER predictions_stay BEFORE UPDATE ON predictions
            BEGIN SELECT RAISE(ABORT, 'a frozen prediction does not change'); END""",
        """CREATE TRIGGER predictions_last BEFORE DELETE ON predictions
            BEGIN SELECT RAISE(ABORT, 'a frozen prediction is not deleted'); END""",
    ),
    (
        "ALTER TABLE items ADD COLUMN certificate TEXT",
        """UPDATE items SET certificate =
            (SELECT digest FROM certificates WHERE certificates.evaluation_id = items.evaluation_id)""",
        "ALTER TABLE certificates RENAME TO certificates_by_evaluation",
        "CREATE TABLE certificates (digest TEXT PRIMARY KEY, body TEXT NOT NULL)",
        "INSERT OR IGNORE INTO certificates SELECT digest, body FROM certificates_by_evaluation",
        "DROP TABLE certificates_by_evaluation",
    ),
    (
        """CREATE TABLE measured (
            key TEXT PRIMARY KEY, digest TEXT NOT NULL, body TEXT NOT NULL, created_at REAL NOT NULL)""",
        """CREATE TABLE tuned_on (
            model TEXT NOT NULL, problem_id TEXT NOT NULL, kind TEXT NOT NULL, created_at REAL NOT NULL,
            PRIMARY KEY (model, problem_id, kind))""",
        "CREATE INDEX items_by_problem ON items (problem_id)",
    ),
    ("CREATE TABLE settings (run_id TEXT PRIMARY KEY, body TEXT NOT NULL)",),
    (  # what was frozen before which run: the place among the runs, since a clock can step back
        "ALTER TABLE predictions ADD COLUMN runs_before INTEGER NOT NULL DEFAULT 0",
        "DROP TRIGGER predictions_stay",
        """UPDATE predictions SET runs_before =
            (SELECT COALESCE(MAX(rowid), 0) FROM runs WHERE runs.created_at <= predictions.created_at)""",
        """CREATE TRIGGER predictions_stay BEFORE UPDATE ON predictions
            BEGIN SELECT RAISE(ABORT, 'a frozen prediction does not change'); END""",
    ),
)


def as_user_error(path: Path, error: sqlite3.Error) -> UserError:
    """Return what to raise for SQLite's `error`: a full disk is the machine's, everything else the store's."""
    if "full" in str(error):
        return ResourceError(
            f"cannot write {path.name}",
            got=error,
            expected="free disk space",
            next_step="Free some and start again: what was finished before is stored.",
        )
    return StoreError(
        f"cannot use {path.name}", got=error, next_step="Move the file away to start afresh, or restore a copy."
    )


@contextmanager
def connection(path: Path, *, write: bool = False) -> Iterator[sqlite3.Connection]:
    """Yield a connection in one transaction: committed at the end, rolled back on any exception.

    Raises:
        StoreError: no database, or locked for longer than 30 s. ResourceError: the disk is full.
    """
    try:
        with closing(sqlite3.connect(path, timeout=LOCK_WAIT_S, isolation_level=None)) as opened:
            opened.row_factory = sqlite3.Row
            opened.text_factory = lambda raw: raw.decode("utf-8", "replace")  # a damaged row is found by its reader
            opened.execute("PRAGMA synchronous=NORMAL")
            opened.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            try:
                yield opened
                opened.execute("COMMIT")
            except BaseException:
                if opened.in_transaction:
                    opened.execute("ROLLBACK")
                raise
    except sqlite3.Error as error:
        raise as_user_error(path, error) from error


def migrate(path: Path) -> None:
    """Bring the database at `path` to the newest tables, creating it where there is none; racing callers are safe."""
    try:
        with closing(sqlite3.connect(path, timeout=LOCK_WAIT_S)) as opened:
            opened.execute("PRAGMA journal_mode=WAL")
    except sqlite3.Error as error:
        raise as_user_error(path, error) from error
    with connection(path, write=True) as opened:
        version = int(opened.execute("PRAGMA user_version").fetchone()[0])
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{path.name} was written by a newer stethoscope",
                got=f"version {version}",
                expected=f"at most {len(MIGRATIONS)}",
                next_step="Update stethoscope, or set STETHOSCOPE_HOME to another folder.",
            )
        for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
            for statement in statements:
                opened.execute(statement)
            opened.execute(f"PRAGMA user_version={number}")
