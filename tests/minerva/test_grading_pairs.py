"""All metrics on 55 pairs of a gold answer and an answer, graded by hand.

The counts are in docs/grading.md. The strict score must accept none of the wrong answers.
"""

import json
from collections import Counter
from pathlib import Path

import pytest

from stethoscope.minerva.grading import Answer, GraderPool
from stethoscope.records import Grade, GradeStatus

PAIRS = [json.loads(line) for line in (Path(__file__).parent / "grading_pairs.jsonl").read_text("utf-8").splitlines()]
DOCUMENT = Path(__file__).parents[2] / "docs" / "grading.md"
METRICS = ("exact_match", "math_verify", "strict")


@pytest.fixture(scope="module")
def grades() -> list[Grade]:
    sentence = "Final Answer: The final answer is ${}$. I hope it is correct."
    answers = [
        Answer(sentence.format(pair["answer"]), f"So $\\boxed{{{pair['gold']}}}$.", pair["gold"]) for pair in PAIRS
    ]
    with GraderPool(deadline_s=60.0) as pool:
        return pool.grade(answers)


def confusion(grades: list[Grade], metric: str) -> tuple[int, int, int, int]:
    """Return how many of the same answers pass and fail, and how many of the others pass and fail."""
    found = Counter(
        (pair["same"], getattr(grade, metric) is GradeStatus.CORRECT) for pair, grade in zip(PAIRS, grades, strict=True)
    )
    return found[True, True], found[True, False], found[False, True], found[False, False]


@pytest.mark.parametrize("metric", METRICS)
def test_the_documented_confusion_table(metric: str, grades: list[Grade]) -> None:
    row = " | ".join(map(str, confusion(grades, metric)))
    assert f"| {metric} | {row} |" in DOCUMENT.read_text("utf-8"), row


def test_the_strict_score_passes_no_wrong_answer(grades: list[Grade]) -> None:
    assert confusion(grades, "strict")[2] == 0
    for pair, grade in zip(PAIRS, grades, strict=True):
        assert grade.strict is not GradeStatus.CORRECT or grade.exact_match is GradeStatus.CORRECT, pair


def test_wrong_answers_that_exact_match_passes_mostly_have_a_gold_at_risk(grades: list[Grade]) -> None:
    passed = [
        (pair["gold"], grade.gold_at_risk)
        for pair, grade in zip(PAIRS, grades, strict=True)
        if not pair["same"] and grade.exact_match is GradeStatus.CORRECT
    ]
    assert len(passed) == 5
    assert sorted(gold for gold, at_risk in passed if not at_risk) == ["4", r"\frac{8}{5}"], (
        "there the answer is misread"
    )


def test_an_answer_beside_a_solution_without_a_box_is_what_math_verify_compares() -> None:
    solution = "See page 41. Add 2 and 3, which makes 5 in all (exercise 12)."
    with GraderPool(deadline_s=60.0) as pool:
        right, wrong = pool.grade([Answer(f"So $\\boxed{{{n}}}$.", solution, "5") for n in (5, 12)])
    assert (right.math_verify, wrong.math_verify) == (GradeStatus.CORRECT, GradeStatus.INCORRECT)
