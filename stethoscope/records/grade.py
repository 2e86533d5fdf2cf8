"""Grade of one answer."""

from enum import StrEnum

from stethoscope.records.base import Record


class GradeStatus(StrEnum):
    """Outcome of grading one answer. Only `correct` counts as correct; the others are shown separately.

    `incorrect`: compared and different. `unparsable`: not comparable, because the answer or the gold answer cannot be
    parsed. `no_answer`: nothing to compare. `timeout`: took longer than the deadline.
    """

    CORRECT = "correct"
    INCORRECT = "incorrect"
    NO_ANSWER = "no_answer"
    UNPARSABLE = "unparsable"
    TIMEOUT = "timeout"


class GoldReading(StrEnum):
    """How lm-eval's parser reads a gold answer.

    `whole`: completely, and math_verify finds no other number in it. `doubtful`: only in part, or as another number
    ("3,8" as 3, 4 2/5 as 8/5), so that exact_match can accept a wrong or incomplete answer. `unread`: not at all, so
    that only the same text is an exact match.
    """

    WHOLE = "whole"
    DOUBTFUL = "doubtful"
    UNREAD = "unread"


class Grade(Record):
    """The three metrics of one answer, and the extracted answer.

    Attributes:
        exact_match: lm-eval's Minerva metric, which reads only the marker sentence.
        math_verify: the second, more lenient metric.
        strict: exact_match, but only if the normalised texts are equal, or both libraries parse both texts completely
            and find them equal; None in grades of older versions.
        gold: how lm-eval reads the gold answer; None in older grades.
        marked: whether the answer contains the marker sentence.
        answer: the extracted and normalised answer; empty if there is none.
    """

    exact_match: GradeStatus
    math_verify: GradeStatus
    strict: GradeStatus | None = None
    gold: GoldReading | None = None
    marked: bool
    answer: str = ""

    @property
    def gold_at_risk(self) -> bool:
        """Whether lm-eval is known not to parse the gold answer completely."""
        return self.gold not in (None, GoldReading.WHOLE)
