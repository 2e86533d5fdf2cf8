"""Problems used for tuning, and the number of edits that have answered a problem, as needed for verdicts.

A problem is identified by the hash of its text, independently of its file. Entries are never removed. Damaged rows are
counted conservatively: they can only exclude more problems or increase the number of configurations.
"""

import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from stethoscope.errors import StoreError
from stethoscope.store.items import read_certificate
from stethoscope.store.schema import connection, insert, intact

PROBLEMS_AT_ONCE = 500  # SQLite allows at least 999 values in a statement


class TunedOn(NamedTuple):
    """Problems used for tuning, and the number of damaged rows in the list."""

    problem_ids: frozenset[str]
    damaged: int


class Tried(NamedTuple):
    """Number of edits that have answered, and how many of them could be a base because their records are damaged."""

    configurations: int
    damaged: int


def put_tuned_on(database: Path, model: str, kind: str, problem_ids: Iterable[str]) -> None:
    """Record that a run of `kind` ("dose", "bench" ...) showed numbers of these problems for tuning on `model`.

    Nothing is written if all of them are already recorded.
    """
    wanted = set(problem_ids)
    with connection(database) as opened:
        known = opened.execute("SELECT * FROM tuned_on WHERE model = ? AND kind = ?", (model, kind)).fetchall()
    missing = wanted - {row["problem_id"] for row in known if intact(row)}
    if not missing:
        return
    with connection(database, write=True) as opened:
        for problem_id in sorted(missing):
            fields = {"model": model, "problem_id": problem_id, "kind": kind, "created_at": time.time()}
            insert(opened, "tuned_on", fields, "OR REPLACE")


def tuned_on(database: Path, model: str, problem_ids: Collection[str]) -> TunedOn:
    """Return which of these problems were used for tuning on `model` (an id; revisions and dtypes are not
    distinguished)."""
    wanted, found, damaged = frozenset(problem_ids), set[str](), 0
    with connection(database) as opened:
        for row in opened.execute("SELECT * FROM tuned_on"):
            sound = intact(row)
            damaged += not sound
            if row["problem_id"] in wanted and (row["model"] == model or not sound):
                found.add(row["problem_id"])
    return TunedOn(frozenset(found), damaged)


def configurations_tried(database: Path, problem_ids: Collection[str]) -> Tried:
    """Return the number of evaluations of edits that have answered any of these problems.

    An evaluation consists of weights, prompts and decoding; evaluations of a base do not count. All runs of this store
    count in any state, because their answers may have been seen. One intact answer with its certificate shows whether
    an evaluation is an edit.
    """
    ids = list(problem_ids)
    said: dict[str, bool | None] = {}  # evaluation -> whether it is an edit, once an intact answer shows it
    with connection(database) as opened:
        for start in range(0, len(ids), PROBLEMS_AT_ONCE):
            part = ids[start : start + PROBLEMS_AT_ONCE]
            marks = ", ".join("?" * len(part))
            rows = opened.execute(f"SELECT DISTINCT evaluation_id FROM items WHERE problem_id IN ({marks})", part)
            for (evaluation,) in rows.fetchall():
                if said.get(str(evaluation)) is None:
                    answers = opened.execute(
                        f"SELECT * FROM items WHERE evaluation_id = ? AND problem_id IN ({marks})", (evaluation, *part)
                    )
                    said[str(evaluation)] = next(_edits(opened, answers), None)
    damaged = sum(edit is None for edit in said.values())
    return Tried(sum(edit is not False for edit in said.values()), damaged)


def _edits(opened: sqlite3.Connection, answers: Iterable[sqlite3.Row]) -> Iterator[bool]:
    """Yield whether an edit gave the answer, for each intact answer with its certificate."""
    for row in answers:
        try:
            if intact(row):
                yield read_certificate(opened, row["certificate"]).recipe_id is not None
        except StoreError:
            continue
