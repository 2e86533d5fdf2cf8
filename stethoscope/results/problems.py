"""Contents of a set of problems."""

from stethoscope.records import GoldReading, Record, Split
from stethoscope.results.base import Result


class ProblemsRow(Record):
    """One subject: its problems, gold answers at risk, and duplicate problems.

    Attributes:
        unread_golds: gold answers that lm-eval's parser cannot read. doubtful_golds: those that it reads in part or as
            another number (see `records.GoldReading`).
        in_other_splits: problems that are also in another split.
        repeats: further copies of these problems in the split, in this or another subject; they are ignored.
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
    """A gold answer that lm-eval does not parse completely, and how it reads it."""

    subject: str
    problem_id: str
    gold: str
    reading: GoldReading


class ProblemsResult(Result):
    """The subjects of a split; `at_risk` lists the first gold answers that lm-eval does not parse completely."""

    split: Split
    rows: tuple[ProblemsRow, ...]
    at_risk: tuple[RiskyGold, ...]

    @property
    def caption(self) -> str:
        """Sentences about gold answers at risk and repeated problems."""
        n, unread = sum(row.n for row in self.rows), sum(row.unread_golds for row in self.rows)
        doubtful, repeats = sum(row.doubtful_golds for row in self.rows), sum(row.repeats for row in self.rows)
        said = []
        if not unread and not doubtful:
            said.append(f"lm-eval reads all {n} gold answers.")
        if unread:
            said.append(
                f"lm-eval cannot read {unread} of {n} gold answers: for these, only the same text is an exact match."
            )
        if doubtful:
            said.append(
                f"lm-eval reads {doubtful} of {n} gold answers in part or as another number: for these, exact_match "
                "can accept a wrong answer, but the strict metric does not."
            )
        if repeats:
            other = sum(row.other_answers for row in self.rows)
            said.append(
                f"{repeats} entries repeat a problem ({other} with another answer); only the first copy counts."
            )
        return " ".join(said)
