"""What a file of problems holds."""

from stethoscope.records import GoldReading, Record, Split
from stethoscope.results.base import Result


class ProblemsRow(Record):
    """One subject: its problems, what can go wrong with their gold answers, and problems that stand elsewhere, too.

    Attributes:
        unread_golds: golds that lm-eval's parser cannot read. doubtful_golds: those that it reads in part, or as
            another number (see `records.GoldReading`).
        in_other_splits: problems that another split holds as well.
        repeats: further copies of these problems in the split, in this or another subject, which are left out.
        other_answers: how many of these copies have another answer.
    """

    subject: str
    n: int
    unread_golds: int
    doubtful_golds: int = 0
    in_other_splits: int
    repeats: int = 0
    other_answers: int = 0


class RiskyGold(Record):
    """A gold answer at risk: one that lm-eval does not read whole, and how it reads it."""

    subject: str
    problem_id: str
    gold: str
    reading: GoldReading


class ProblemsResult(Result):
    """The subjects of a split; `at_risk` are the first of the gold answers that lm-eval does not read whole."""

    split: Split
    rows: tuple[ProblemsRow, ...]
    at_risk: tuple[RiskyGold, ...]

    @property
    def caption(self) -> str:
        """What a plan says of its gold answers and of repeated problems, in sentences."""
        n, unread = sum(row.n for row in self.rows), sum(row.unread_golds for row in self.rows)
        doubtful, repeats = sum(row.doubtful_golds for row in self.rows), sum(row.repeats for row in self.rows)
        said = []
        if not unread and not doubtful:
            said.append(f"lm-eval reads all {n} gold answers.")
        if unread:
            said.append(
                f"lm-eval cannot read {unread} of {n} gold answers: there only the same text is an exact match."
            )
        if doubtful:
            said.append(
                f"lm-eval reads {doubtful} of {n} gold answers in part or as another number: there exact_match can "
                "accept a wrong answer, which the strict score does not."
            )
        if repeats:
            other = sum(row.other_answers for row in self.rows)
            said.append(
                f"{repeats} more entries repeat a problem ({other} with another answer): each counts once, as it "
                "stands first."
            )
        return " ".join(said)
