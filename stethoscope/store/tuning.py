"""Which problems something was chosen on, and how many edits have answered a problem: what a verdict has to know.

A problem is known by the hash of its text, whatever file it came from. Nothing is ever taken off these lists.
"""

import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from stethoscope.store.schema import connection

PROBLEMS_AT_ONCE = 500  # SQLite takes at least 999 values in a statement


def _in_parts(problem_ids: Collection[str]) -> Iterator[list[str]]:
    ids = list(problem_ids)
    for start in range(0, len(ids), PROBLEMS_AT_ONCE):
        yield ids[start : start + PROBLEMS_AT_ONCE]


def put_tuned_on(database: Path, model: str, kind: str, problem_ids: Iterable[str]) -> None:
    """Remember that a run of `kind` ("dose", "bench" ...) showed numbers of these problems for choosing on `model`."""
    rows = [(model, problem_id, kind, time.time()) for problem_id in problem_ids]
    with connection(database, write=True) as opened:
        opened.executemany("INSERT INTO tuned_on VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", rows)


def tuned_on(database: Path, model: str, problem_ids: Collection[str]) -> frozenset[str]:
    """Return which of these problems something was chosen on for `model`, an id: revisions and dtypes count as one."""
    found: set[str] = set()
    with connection(database) as opened:
        for part in _in_parts(problem_ids):
            marks = ", ".join("?" * len(part))
            rows = opened.execute(
                f"SELECT DISTINCT problem_id FROM tuned_on WHERE model = ? AND problem_id IN ({marks})", (model, *part)
            )
            found.update(str(row["problem_id"]) for row in rows)
    return frozenset(found)


def configurations_tried(database: Path, problem_ids: Collection[str]) -> int:
    """Return how many evaluations of edits have answered any of these problems.

    An evaluation is weights, prompts and decoding; those of a base do not count. Every run of this store does, whatever
    became of it, since its answers may have been looked at.
    """
    found: set[str] = set()
    with connection(database) as opened:
        for part in _in_parts(problem_ids):
            marks = ", ".join("?" * len(part))
            rows = opened.execute(
                f"SELECT DISTINCT evaluation_id FROM items WHERE problem_id IN ({marks}) AND certificate IN"
                " (SELECT digest FROM certificates WHERE json_extract(body, '$.recipe_id') IS NOT NULL)",
                part,
            )
            found.update(str(row["evaluation_id"]) for row in rows)
    return len(found)
