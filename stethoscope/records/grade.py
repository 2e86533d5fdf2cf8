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


class GoldReading(StrEnum):
    """How lm-eval's parser reads a gold answer.

    `whole`: to its end, and math_verify finds no other number in it. `doubtful`: only in part, or as another number
    ("3,8" as 3, 4 2/5 as 8/5), so that exact_match can accept a wrong or half an answer. `unread`: not at all, so that
    only the same text is an exact match.
    """

    WHOLE = "whole"
    DOUBTFUL = "doubtful"
    UNREAD = "unread"


class Grade(Record):
    """The three verdicts on one answer, and what was read out of it.

    Attributes:
        exact_match: lm-eval's minerva score, on text behind the marker sentence only.
        math_verify: the second, more lenient score.
        strict: exact_match, given only where the normalised texts are the same, or both libraries read both texts whole
            and call them equal; None in grades of versions that did not have it.
        gold: how lm-eval reads the gold answer; None in older grades.
        marked: the marker sentence appears.
        answer: the extracted and normalised answer, empty where there is none.
    """

    exact_match: GradeStatus
    math_verify: GradeStatus
    strict: GradeStatus | None = None
    gold: GoldReading | None = None
    marked: bool
    answer: str = ""

    @property
    def gold_at_risk(self) -> bool:
        """Whether lm-eval is known not to read the gold answer whole."""
        return self.gold not in (None, GoldReading.WHOLE)
