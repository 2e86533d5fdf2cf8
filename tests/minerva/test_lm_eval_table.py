"""Our graders against a table of what lm-eval itself said (`record_lm_eval.py` wrote it): no item may differ."""

import collections
import json

import pytest

from stethoscope.minerva.grading import Answer, GraderPool
from stethoscope.records import GradeStatus
from tests.minerva.record_lm_eval import TABLE, answers

ROWS = [json.loads(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]


def test_the_table_is_the_one_that_the_script_writes() -> None:
    assert [{name: row[name] for name in ("kind", "completion", "solution")} for row in ROWS] == list(answers())


def test_the_table_is_diverse() -> None:
    kinds = collections.Counter(row["kind"] for row in ROWS)
    assert len(ROWS) >= 300
    assert kinds["equal"] >= 60 <= kinds["near miss"]
    for metric in ("exact_match", "math_verify"):
        assert 60 < sum(row[metric] for row in ROWS) < len(ROWS) - 60


def test_every_grade_is_lm_evals() -> None:
    with GraderPool(n_workers=2, deadline_s=30.0) as pool:
        grades = pool.grade([Answer(row["completion"], row["solution"]) for row in ROWS])
    different = [
        (row["kind"], row["completion"][:90], metric)
        for row, grade in zip(ROWS, grades, strict=True)
        for metric in ("exact_match", "math_verify")
        if (getattr(grade, metric) is GradeStatus.CORRECT) != bool(row[metric])
    ]
    assert different == []


@pytest.mark.parametrize("status", [GradeStatus.UNPARSABLE, GradeStatus.NO_ANSWER])
def test_what_cannot_be_read_has_a_status_of_its_own(status: GradeStatus) -> None:
    odd = [row for row in ROWS if row["kind"] == "odd"]
    with GraderPool(deadline_s=30.0) as pool:
        grades = pool.grade([Answer(row["completion"], row["solution"]) for row in odd])
    assert sum(grade.exact_match is status for grade in grades) >= 5
