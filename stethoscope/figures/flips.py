"""Changed answers (flips): problems on which an arm and the reference differ, and the first difference in their
answers.

A flip is one problem with both answers. The metric can be chosen (exact_match or math_verify); only `correct` counts as
right. Answers are escaped with `html.escape`, so that model output never becomes markup.
"""

import html
from dataclasses import dataclass
from typing import Literal, get_args

from stethoscope.figures.text import STYLE
from stethoscope.records import GradeStatus
from stethoscope.results import BenchItem, BenchResult

Kind = Literal["wrong to right", "right to wrong", "both wrong, different answers", "all"]
Metric = Literal["exact_match", "math_verify", "strict"]
Golds = Literal["all golds", "read whole", "at risk"]
KINDS: tuple[Kind, ...] = get_args(Kind)
METRICS: tuple[Metric, ...] = get_args(Metric)
GOLDS: tuple[Golds, ...] = get_args(Golds)
MARK = "background:rgba(224,117,26,.45);border-bottom:2px solid #e0751a;border-radius:3px"
SHOWN_CHARACTERS = 8000


@dataclass(frozen=True)
class Flip:
    """One problem with the answers of the reference and the arm."""

    base: BenchItem
    arm: BenchItem

    @property
    def problem_id(self) -> str:
        """The hash of the problem's text."""
        return self.base.problem_id

    @property
    def golds(self) -> Golds:
        """Whether the gold answer is at risk; "all golds" if unknown in older answers."""
        reading = self.base.grade.gold
        return "all golds" if reading is None else "at risk" if self.base.grade.gold_at_risk else "read whole"

    def kind(self, metric: Metric) -> Kind:
        """Return how the answer changed; "all" if it stayed right, or wrong with the same answer."""
        before, after = is_right(self.base, metric), is_right(self.arm, metric)
        if before != after:
            return "wrong to right" if after else "right to wrong"
        return (
            "both wrong, different answers" if not after and self.base.grade.answer != self.arm.grade.answer else "all"
        )


def is_right(item: BenchItem, metric: Metric) -> bool:
    """Return whether the answer is correct according to `metric`."""
    return getattr(item.grade, metric) is GradeStatus.CORRECT


def pairs(result: BenchResult, arm: str) -> list[Flip]:
    """Return every problem that both `arm` and the reference (the first arm) have answered, in the run's order."""
    reference = result.spec.arms[0].name
    answered = {(item.subject, item.problem_id): item for item in result.items if item.arm == arm}
    return [
        Flip(item, answered[item.subject, item.problem_id])
        for item in result.items
        if item.arm == reference and (item.subject, item.problem_id) in answered
    ]


def chosen(
    flips: list[Flip],
    *,
    kind: Kind,
    metric: Metric,
    golds: Golds = "all golds",
    subject: str | None = None,
    search: str = "",
) -> list[Flip]:
    """Return the flips of one kind (all of them: "all"), of one subject and kind of gold answer, that contain
    `search`."""
    wanted = search.casefold().strip()
    return [
        flip
        for flip in flips
        if (kind == "all" or flip.kind(metric) == kind)
        and golds in ("all golds", flip.golds)
        and (subject is None or flip.base.subject == subject)
        and (not wanted or any(wanted in text.casefold() for text in _texts(flip)))
    ]


def _texts(flip: Flip) -> tuple[str, ...]:
    return (
        flip.base.problem,
        flip.base.gold,
        flip.base.completion,
        flip.arm.completion,
        flip.problem_id,
    )


def counts(flips: list[Flip], metric: Metric) -> dict[Kind, int]:
    """Return the number of flips of each kind; "all" counts every problem."""
    found = dict.fromkeys(KINDS, 0)
    for flip in flips:
        if (kind := flip.kind(metric)) != "all":
            found[kind] += 1
    found["all"] = len(flips)
    return found


def answer_html(text: str, diverges_at: int | None) -> str:
    """Return an answer as one escaped HTML block; the word at character `diverges_at`, if any, is marked.

    Text beyond 8,000 characters is truncated, with a note.
    """
    cut = text[:SHOWN_CHARACTERS]
    rest = f"… ({len(text) - len(cut):,} more characters)" if len(text) > len(cut) else ""
    if not text:
        body = "<i>empty</i>"
    elif diverges_at is None:
        body = html.escape(cut)
    else:
        end = next((at for at in range(diverges_at + 1, len(cut)) if cut[at].isspace()), len(cut))
        marked = cut[diverges_at:end] or "⏹"  # the answer ended where the other continued
        shown = html.escape(marked).replace("\n", "↵\n")
        body = (
            f"{html.escape(cut[:diverges_at])}"
            f'<mark style="{MARK};color:inherit" aria-label="first difference">{shown}</mark>{html.escape(cut[end:])}'
        )
    return f'<div style="{STYLE}">{body}{html.escape(rest)}</div>'


def row(flip: Flip) -> dict[str, object]:
    """Return one flip as a row of numbers and texts for CSV."""
    return {
        "problem_id": flip.problem_id,
        "subject": flip.base.subject,
        "gold": flip.base.gold,
        "gold_reading": flip.base.grade.gold and flip.base.grade.gold.value,
        "reference": flip.base.arm,
        "reference_answer": flip.base.grade.answer,
        "reference_exact_match": flip.base.grade.exact_match.value,
        "reference_math_verify": flip.base.grade.math_verify.value,
        "reference_strict": flip.base.grade.strict and flip.base.grade.strict.value,
        "arm": flip.arm.arm,
        "arm_answer": flip.arm.grade.answer,
        "arm_exact_match": flip.arm.grade.exact_match.value,
        "arm_math_verify": flip.arm.grade.math_verify.value,
        "arm_strict": flip.arm.grade.strict and flip.arm.grade.strict.value,
        "problem": flip.base.problem,
        "reference_completion": flip.base.completion,
        "arm_completion": flip.arm.completion,
    }
