"""Graded answers, stored in complete blocks, each with the certificate of its weights.

An answer is identified by its evaluation (weights, decoding), its problem and the tokens of its prompt, independently
of the run. A certificate is stored once under its digest. Both are checked against their digests when they are read.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from stethoscope.errors import StoreError
from stethoscope.results import BenchItem, Certificate
from stethoscope.store.ids import bytes_id, canonical_json
from stethoscope.store.schema import connection, insert, intact

PROBLEMS_AT_ONCE = 500  # SQLite allows at least 999 values in a statement


class StoredItem(NamedTuple):
    """A graded answer with the certificate of its weights."""

    item: BenchItem
    certificate: Certificate


def put_items(database: Path, evaluation_id: str, items: Sequence[BenchItem], certificate: Certificate) -> None:
    """Store a finished block atomically; existing items and certificates are replaced."""
    body = _body(certificate)
    digest = bytes_id(body.encode())
    with connection(database, write=True) as opened:
        opened.execute("INSERT OR REPLACE INTO certificates VALUES (?, ?)", (digest, body))
        for item in items:
            key = {"evaluation_id": evaluation_id, "problem_id": item.problem_id, "prompt_id": item.prompt_id}
            insert(opened, "items", {**key, "certificate": digest, "body": _body(item)}, "OR REPLACE")


def stored_answers(database: Path, evaluation_id: str) -> frozenset[tuple[str, str]]:
    """Return the (problem id, prompt id) of all stored answers of an evaluation."""
    with connection(database) as opened:
        rows = opened.execute("SELECT problem_id, prompt_id FROM items WHERE evaluation_id = ?", (evaluation_id,))
        return frozenset((str(row["problem_id"]), str(row["prompt_id"])) for row in rows)


def get_items(
    database: Path, evaluation_id: str, prompts: Mapping[str, str], *, skip_damaged: bool
) -> dict[str, StoredItem]:
    """Return the stored answers to these prompts by problem id, in their order.

    Args:
        prompts: the prompt id of each wanted problem.
        skip_damaged: omit damaged items, so that a resumed benchmark grades them again.

    Raises:
        StoreError: an item or its certificate is damaged.
    """
    wanted = list(prompts)
    certificates: dict[str, Certificate] = {}
    items: dict[str, StoredItem] = {}
    with connection(database) as opened:
        for start in range(0, len(wanted), PROBLEMS_AT_ONCE):
            part = wanted[start : start + PROBLEMS_AT_ONCE]
            marks = ", ".join("?" * len(part))
            found = opened.execute(
                f"SELECT * FROM items WHERE evaluation_id = ? AND problem_id IN ({marks})", (evaluation_id, *part)
            )
            for row in found.fetchall():
                if row["prompt_id"] != prompts[row["problem_id"]]:
                    continue
                try:
                    item, digest = _item(row), row["certificate"]
                    if digest not in certificates:
                        certificates[digest] = read_certificate(opened, digest)
                    items[row["problem_id"]] = StoredItem(item, certificates[digest])
                except StoreError:
                    if not skip_damaged:
                        raise
    return {problem_id: items[problem_id] for problem_id in wanted if problem_id in items}


def _body(record: BenchItem | Certificate) -> str:
    return canonical_json(record.model_dump(mode="json")).decode()


def _item(row: sqlite3.Row) -> BenchItem:
    what = f"graded answer {row['problem_id']}"
    if not intact(row):
        raise StoreError(
            f"{what} is damaged",
            next_step="Resume the benchmark to grade it again.",
            got="a row that was modified or corrupted",
        )
    try:
        return BenchItem.model_validate_json(row["body"])
    except ValidationError as error:
        raise StoreError(
            f"{what} is not in the format of this version",
            got=error.errors()[0]["msg"],
            expected="an answer in the format of this version",
            next_step="Resume the benchmark to grade it again.",
        ) from error


def read_certificate(opened: sqlite3.Connection, digest: str) -> Certificate:
    """Return the certificate with this digest; raise `StoreError` if it is missing or damaged."""
    row = opened.execute("SELECT body FROM certificates WHERE certificate = ?", (digest,)).fetchone()
    try:
        if row is not None and bytes_id(str(row["body"]).encode()) == digest:
            return Certificate.model_validate_json(row["body"])
    except ValidationError:
        pass
    raise StoreError(
        "the certificate of a graded answer is damaged",
        got=digest,
        next_step="Run the benchmark again to generate its answers again.",
    )
