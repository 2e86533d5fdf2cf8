"""Our graders agree with lm-eval on every item of a table that `record_lm_eval.py` wrote."""

import collections
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from stethoscope.minerva.grading import Answer, GraderPool
from stethoscope.minerva.problems import answer_of
from stethoscope.records import GoldReading, Grade, GradeStatus
from tests.minerva.record_lm_eval import PAIRS, TABLE, answers

Row = dict[str, Any]
ROWS: list[Row] = [json.loads(line) for line in TABLE.read_text(encoding="utf-8").rstrip("\n").split("\n")]


@pytest.fixture(scope="module")
def pool() -> Iterator[GraderPool]:
    with GraderPool(n_workers=2, deadline_s=30.0) as shared:
        yield shared


@pytest.fixture(scope="module")
def graded(pool: GraderPool) -> list[tuple[Row, Grade]]:
    """Every row and its grade, computed outside the main thread, like in the job worker."""
    with ThreadPoolExecutor(1) as thread:
        grades = thread.submit(pool.grade, [Answer(row["completion"], row["solution"]) for row in ROWS]).result()
    return list(zip(ROWS, grades, strict=True))


def test_the_table_is_the_one_that_the_script_writes() -> None:
    names = ("topic", "kind", "completion", "solution")
    assert [tuple(row[name] for name in names) for row in ROWS] == [
        tuple(row[name] for name in names) for row in answers()
    ]


def test_the_table_is_diverse() -> None:
    assert len({(row["completion"], row["solution"]) for row in ROWS}) >= 500
    kinds = collections.Counter(row["kind"] for row in ROWS)
    assert kinds["equal"] >= 150 <= kinds["near miss"]
    topics = collections.Counter((row["topic"], row["kind"]) for row in ROWS)
    for topic, pairs in PAIRS.items():
        assert len(pairs) >= 3, topic
        assert topics[topic, "equal"] >= 6, topic
        assert topics[topic, "near miss"] >= 8, topic
    assert all(topics[topic, "odd"] >= 10 for topic in ("empty", "malformed", "repeated", "strange"))


def test_what_was_meant_to_be_equal_or_not_mostly_is() -> None:
    """lm-eval is not perfect: a few equal answers fail both of its metrics, a few near misses pass one."""
    found = {
        kind: [row["exact_match"] or row["math_verify"] for row in ROWS if row["kind"] == kind]
        for kind in ("equal", "near miss")
    }
    assert sum(found["equal"]) >= 150
    assert found["near miss"].count(0) >= 150
    for kind in found:
        only_one = sum(row["exact_match"] != row["math_verify"] for row in ROWS if row["kind"] == kind)
        assert only_one >= 5, kind  # the metrics are two


def test_every_grade_is_lm_evals(graded: list[tuple[Row, Grade]]) -> None:
    different = [
        (row["kind"], row["completion"][:90], metric)
        for row, grade in graded
        for metric in ("exact_match", "math_verify")
        if (getattr(grade, metric) is GradeStatus.CORRECT) != bool(row[metric])
    ]
    assert different == []


@pytest.mark.parametrize("status", [GradeStatus.UNPARSABLE, GradeStatus.NO_ANSWER])
def test_what_cannot_be_read_has_a_status_of_its_own(status: GradeStatus, graded: list[tuple[Row, Grade]]) -> None:
    assert sum(grade.exact_match is status for row, grade in graded if row["kind"] == "odd") >= 5


def test_incorrect_was_compared(pool: GraderPool, graded: list[tuple[Row, Grade]]) -> None:
    """If the gold answer cannot be read, another text is not called incorrect; if both can, it is."""
    near = [(row, grade) for row, grade in graded if row["kind"] == "near miss"]
    golds = [answer_of(row["solution"]) or "" for row, _ in near]
    read = [reading is not GoldReading.UNREAD for reading in pool.read_golds(golds)]
    assert 20 < sum(read) < len(near) - 20
    for (row, grade), readable in zip(near, read, strict=True):
        assert readable or grade.exact_match in (GradeStatus.UNPARSABLE, GradeStatus.CORRECT), row
    numbers = [grade for row, grade in near if row["topic"] in ("number", "fraction", "root")]
    assert sum(grade.exact_match is GradeStatus.INCORRECT for grade in numbers) > 0.8 * len(numbers)
