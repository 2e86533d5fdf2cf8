"""Which problems something was chosen on, and how many edits have answered a problem: what a verdict has to know.

A problem is known by the hash of its text, whatever file it came from. Nothing is ever taken off these lists. A damaged
row is counted: as far as it can still be read it leaves out or adds, and never the other way.
"""

import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from stethoscope.errors import StoreError
from stethoscope.store.items import read_certificate
from stethoscope.store.schema import connection, insert, intact

PROBLEMS_AT_ONCE = 500  # SQLite takes at least 999 values in a statement


class TunedOn(NamedTuple):
    """Problems that something was chosen on, and how many rows of the whole list are damaged."""

    problem_ids: frozenset[str]
    damaged: int


class Tried(NamedTuple):
    """How many edits have answered, and how many of them may be a base, since what is stored of them is damaged."""

    configurations: int
    damaged: int


def put_tuned_on(database: Path, model: str, kind: str, problem_ids: Iterable[str]) -> None:
    """Remember that a run of `kind` ("dose", "bench" ...) showed numbers of these problems for choosing on `model`.

    Nothing is written where all of it is known.
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
    """Return which of these problems something was chosen on for `model`, an id: revisions and dtypes count as one."""
    wanted, found, damaged = frozenset(problem_ids), set[str](), 0
    with connection(database) as opened:
        for row in opened.execute("SELECT * FROM tuned_on"):
            sound = intact(row)
            damaged += not sound
            if row["problem_id"] in wanted and (row["model"] == model or not sound):
                found.add(row["problem_id"])
    return TunedOn(frozenset(found), damaged)


def configurations_tried(database: Path, problem_ids: Collection[str]) -> Tried:
    """Return how many evaluations of edits have answered any of these problems.

    An evaluation is weights, prompts and decoding; those of a base do not count. Every run of this store does, whatever
    became of it, since its answers may have been looked at. One answer of an evaluation that is intact, with its
    certificate, says which it is.
    """
    ids = list(problem_ids)
    said: dict[str, bool | None] = {}  # evaluation -> is it an edit's, as soon as an intact answer tells
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
    """Yield of each answer that is intact, with its certificate, whether an edit gave it."""
    for row in answers:
        try:
            if intact(row):
                yield read_certificate(opened, row["certificate"]).recipe_id is not None
        except StoreError:
            continue
