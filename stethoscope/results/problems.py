"""What a file of problems holds."""

from stethoscope.records import Record, Split


class ProblemsRow(Record):
    """One subject: its problems, the gold answers that lm-eval's parser cannot read, and problems of other splits."""

    subject: str
    n: int
    unread_golds: int
    in_other_splits: int


class UnreadGold(Record):
    """A gold answer that cannot be read: only the same text is an exact match."""

    subject: str
    problem_id: str
    gold: str


class ProblemsResult(Record):
    """The subjects of a split; `unread` are the first of the gold answers that cannot be read."""

    split: Split
    rows: tuple[ProblemsRow, ...]
    unread: tuple[UnreadGold, ...]

    @property
    def caption(self) -> str:
        """What a plan says of its gold answers, in one sentence."""
        n, unread = sum(row.n for row in self.rows), sum(row.unread_golds for row in self.rows)
        if not unread:
            return f"lm-eval reads all {n} gold answers."
        return f"lm-eval cannot read {unread} of {n} gold answers: there only the same text is an exact match."
