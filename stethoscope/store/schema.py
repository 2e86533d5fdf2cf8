"""The tables of the run store, and what SQLite's errors mean.

A row with a digest is sealed: the digest covers all its other columns, so that any change is detected when the row is
read (`intact`). SQLite's `user_version` is the version of the tables; 0 means an empty file.

Reading does not wait for writers, and also works in a read-only folder.
"""

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from stethoscope.errors import ResourceError, StoreError, UserError
from stethoscope.store.ids import bytes_id

LOCK_WAIT_S = 30.0
VERSION = 9
TABLES = (
    "CREATE TABLE recipes (recipe_id TEXT PRIMARY KEY, body TEXT NOT NULL, created_at REAL NOT NULL)",
    """CREATE TABLE runs (
        sequence INTEGER PRIMARY KEY, run_id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, spec_id TEXT NOT NULL,
        spec TEXT NOT NULL,
        state TEXT NOT NULL, created_at REAL NOT NULL, elapsed_s REAL, result_id TEXT, error TEXT,
        title TEXT, pinned INTEGER NOT NULL DEFAULT 0, digest TEXT NOT NULL)""",
    "CREATE INDEX runs_by_spec ON runs (spec_id, state)",
    "CREATE TABLE settings (run_id TEXT PRIMARY KEY, body TEXT NOT NULL, digest TEXT NOT NULL)",
    "CREATE TABLE certificates (certificate TEXT PRIMARY KEY, body TEXT NOT NULL)",
    """CREATE TABLE items (
        evaluation_id TEXT NOT NULL, problem_id TEXT NOT NULL, prompt_id TEXT NOT NULL, certificate TEXT NOT NULL,
        digest TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (evaluation_id, problem_id, prompt_id))""",
    "CREATE INDEX items_by_problem ON items (problem_id, evaluation_id)",
    """CREATE TABLE predictions (
        prediction_id TEXT PRIMARY KEY, body TEXT NOT NULL, created_at REAL NOT NULL, runs_before INTEGER NOT NULL,
        digest TEXT NOT NULL)""",
    """CREATE TRIGGER predictions_stay BEFORE UPDATE ON predictions
        BEGIN SELECT RAISE(ABORT, 'a frozen prediction does not change'); END""",
    """CREATE TRIGGER predictions_last BEFORE DELETE ON predictions
        BEGIN SELECT RAISE(ABORT, 'a frozen prediction is not deleted'); END""",
    "CREATE TABLE measured (key TEXT PRIMARY KEY, body TEXT NOT NULL, created_at REAL NOT NULL, digest TEXT NOT NULL)",
    """CREATE TABLE tuned_on (
        model TEXT NOT NULL, problem_id TEXT NOT NULL, kind TEXT NOT NULL, created_at REAL NOT NULL,
        digest TEXT NOT NULL, PRIMARY KEY (model, problem_id, kind))""",
)
_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_NOT_WRITABLE = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


# --- sealed rows -----------------------------------------------------------------------------------------------------


def sealed(fields: Mapping[str, object]) -> dict[str, object]:
    """Return the columns of a row with their digest."""
    return {**fields, "digest": _digest(fields)}


def intact(row: sqlite3.Row) -> bool:
    """Return whether a row matches its digest."""
    fields = dict(zip(row.keys(), row, strict=True))
    return fields.pop("digest", None) == _digest(fields)


def _digest(fields: Mapping[str, object]) -> str:
    return bytes_id(ascii(sorted(fields.items())).encode())


def insert(opened: sqlite3.Connection, table: str, fields: Mapping[str, object], conflict: str = "") -> None:
    """Insert a sealed row; `conflict` says what to do if its key exists: "OR IGNORE" or "OR REPLACE"."""
    row = sealed(fields)
    marks = ", ".join("?" * len(row))
    opened.execute(f"INSERT {conflict} INTO {table} ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))


# --- errors ----------------------------------------------------------------------------------------------------------


def as_user_error(path: Path, error: sqlite3.Error) -> UserError:
    """Return the exception for SQLite's `error`, with its cause and what to do.

    A `StoreError` means a damaged or foreign file; a `ResourceError` means a temporary problem with reading or writing.
    """
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in _DAMAGED:
        return StoreError(
            f"{path.name} is damaged",
            got=error,
            next_step=f"Restore a backup of {path}, or move the file away to start with an empty store.",
        )
    if code in _LOCKED:
        return ResourceError(
            f"{path.name} is locked by another program",
            got=f"{error}, after waiting",
            next_step=(
                "Nothing is damaged. Wait for the other program (a backup, for example) to finish, or stop it, "
                "and try again."
            ),
        )
    if not path.exists():
        return ResourceError(
            f"{path} no longer exists",
            got="no such file",
            next_step="Restore the folder, or restart stethoscope to create a new one.",
        )
    if (full := _full(path)) is not None or code == sqlite3.SQLITE_FULL:
        return ResourceError(
            f"cannot write {path}",
            got=full or error,
            expected="free disk space",
            next_step="Free some disk space. Nothing is damaged, and earlier results are stored.",
        )
    if code in _NOT_WRITABLE or not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        return ResourceError(
            f"{path} cannot be written to",
            got=error,
            expected="a file and a folder that this user can write to",
            next_step="Nothing is damaged. Fix the permissions, or set STETHOSCOPE_HOME to another folder.",
        )
    return StoreError(f"cannot use {path.name}", got=error, next_step=f"Check the disk and the folder {path.parent}.")


def _full(path: Path) -> str | None:
    """Return how the disk of `path` is full; None if it has space."""
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return None
    if disk.f_bavail == 0:
        return "a full disk"
    return "a disk without free inodes" if disk.f_files and disk.f_favail == 0 else None


# --- connections -----------------------------------------------------------------------------------------------------


def _open(path: Path, mode: str, wait_s: float) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?{mode}"
    opened = sqlite3.connect(uri, uri=True, timeout=wait_s, isolation_level=None)
    opened.row_factory = sqlite3.Row
    opened.text_factory = lambda raw: raw.decode("utf-8", "replace")  # a damaged row is detected by its reader
    return opened


def _begin(path: Path, *, write: bool, wait_s: float) -> sqlite3.Connection:
    """Return a connection in a transaction.

    A file in WAL mode needs a second file even for reading. In a read-only folder without pending log entries, it is
    opened as an immutable file.
    """
    opened = _open(path, "mode=rw", wait_s)
    try:
        opened.execute("PRAGMA synchronous=NORMAL")
        opened.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        opened.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        opened.close()
        log = path.with_name(f"{path.name}-wal")
        hindered = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
        if write or not hindered or (log.exists() and log.stat().st_size > 0):
            raise
        opened = _open(path, "mode=ro&immutable=1", wait_s)
        opened.execute("BEGIN")
    return opened


@contextmanager
def connection(path: Path, *, write: bool = False, wait_s: float | None = None) -> Iterator[sqlite3.Connection]:
    """Yield a connection in one transaction: committed at the end, rolled back on any exception.

    Args:
        wait_s: seconds to wait for another writer's lock (None: `LOCK_WAIT_S`).

    Raises:
        StoreError: a damaged or foreign file.
        ResourceError: locked, missing, on a full disk, or read-only (see `as_user_error`).
    """
    try:
        with closing(_begin(path, write=write, wait_s=LOCK_WAIT_S if wait_s is None else wait_s)) as opened:
            try:
                yield opened
                opened.execute("COMMIT")
            except BaseException:
                if opened.in_transaction:
                    opened.execute("ROLLBACK")
                raise
    except sqlite3.Error as error:
        raise as_user_error(path, error) from error


def create(path: Path) -> None:
    """Create the tables if there are none, otherwise check their version; safe for concurrent callers.

    Raises:
        StoreError: the tables have another version.
    """
    if path.exists() and _version(path):
        return
    try:
        with closing(sqlite3.connect(path, timeout=LOCK_WAIT_S)) as opened:
            opened.execute("PRAGMA journal_mode=WAL")
    except sqlite3.Error as error:
        raise as_user_error(path, error) from error
    with connection(path, write=True) as opened:
        if int(opened.execute("PRAGMA user_version").fetchone()[0]) == 0:
            for statement in TABLES:
                opened.execute(statement)
            opened.execute(f"PRAGMA user_version={VERSION}")


def _version(path: Path) -> int:
    with connection(path) as opened:
        version = int(opened.execute("PRAGMA user_version").fetchone()[0])
    if version not in (0, VERSION):
        raise StoreError(
            f"{path.name} was written by another version of stethoscope",
            got=f"tables of version {version}",
            expected=f"version {VERSION}",
            next_step="Use that version, or set STETHOSCOPE_HOME to another folder.",
        )
    return version
