"""The verdict on one answer."""

from enum import StrEnum

from stethoscope.records.base import Record


class GradeStatus(StrEnum):
    """Outcome of grading one answer. Only `correct` counts as correct; the others are shown apart.

    `incorrect` was compared and is different; `unparsable` could not be compared, because the answer or the gold answer
    cannot be read; `no_answer` has nothing to compare; `timeout` took longer than the deadline.
    """

    CORRECT = "correct"
    INCORRECT = "incorrect"
    NO_ANSWER = "no_answer"
    UNPARSABLE = "unparsable"
    TIMEOUT = "timeout"


class Grade(Record):
    """The two verdicts on one answer, and what was read out of it.

    Attributes:
        exact_match: lm-eval's minerva score, on text behind the marker sentence only.
        math_verify: the second, more lenient score.
        marked: the marker sentence appears.
        answer: the extracted and normalised answer, empty where there is none.
    """

    exact_match: GradeStatus
    math_verify: GradeStatus
    marked: bool
    answer: str = ""
