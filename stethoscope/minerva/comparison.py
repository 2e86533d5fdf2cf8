"""From graded answers to verdicts: arms counted one by one, then compared on the problems that both have finished.

An arm and the reference are matched by (subject, problem id); a problem that only one of them has finished counts
in that arm's own row and in no comparison. Correct means exact_match; timeouts and unparsable answers are wrong,
and shown apart. Holm's correction is over the subjects of one arm, controls apart: they are a family of their own
and no part of the totals.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Literal, NamedTuple

import numpy as np

from stethoscope.records import GradeStatus, finite_or_none
from stethoscope.results import ArmRow, BenchItem, ComparisonRow, TotalRow
from stethoscope.statistics import (
    holm,
    lm_eval_stderr,
    mcnemar_exact,
    newcombe_paired,
    stratified_paired_bootstrap,
    unpooled_z,
    verdict,
    wilson,
)

_UNSCORED = (GradeStatus.TIMEOUT, GradeStatus.UNPARSABLE)
_BOOTSTRAP_DRAWS = 10_000

Key = tuple[str, str]


class Comparison(NamedTuple):
    """Paired rows by arm and subject, and the macro and micro totals of each arm."""

    comparisons: tuple[ComparisonRow, ...]
    totals: tuple[TotalRow, ...]


class _Pairs(NamedTuple):
    arm: np.ndarray
    reference: np.ndarray

    def table(self) -> tuple[int, int, int, int]:
        """Return n11, n10, n01, n00."""
        both, only_arm = int((self.arm & self.reference).sum()), int((self.arm & ~self.reference).sum())
        only_reference = int((~self.arm & self.reference).sum())
        return both, only_arm, only_reference, len(self.arm) - both - only_arm - only_reference


def is_correct(item: BenchItem) -> bool:
    """Return whether exact_match found the answer right."""
    return item.grade.exact_match is GradeStatus.CORRECT


def _by_key(items: Iterable[BenchItem]) -> dict[Key, BenchItem]:
    return {(item.subject, item.problem_id): item for item in items}


def _subjects(items: Iterable[Key], order: Collection[str]) -> list[str]:
    """Return the subjects that occur, in the order asked for, others behind in the order of their first item."""
    occurring = dict.fromkeys(subject for subject, _ in items)
    return [subject for subject in order if subject in occurring] + [s for s in occurring if s not in order]


def arm_rows(items: Iterable[BenchItem], recipe_id: str | None = None, subjects: Collection[str] = ()) -> list[ArmRow]:
    """Return one row per subject of one arm: accuracy with Wilson's interval, math_verify, marker and truncation rates.

    Args:
        items: graded answers of the arm; a problem that occurs twice counts once, the last.
        recipe_id: the arm's recipe (None for the base).
        subjects: display order; subjects without items get no row.
    """
    keyed = _by_key(items)
    assert len({item.arm for item in keyed.values()}) <= 1, "the items of one arm at a time"
    return [
        _arm_row(recipe_id, subject, [item for item in keyed.values() if item.subject == subject])
        for subject in _subjects(keyed, subjects)
    ]


def _arm_row(recipe_id: str | None, subject: str, items: list[BenchItem]) -> ArmRow:
    n, correct = len(items), sum(map(is_correct, items))
    interval = wilson(correct, n)
    return ArmRow(
        arm=items[0].arm,
        recipe_id=recipe_id,
        subject=subject,
        n=n,
        correct=correct,
        accuracy=correct / n,
        ci_low=interval.low,
        ci_high=interval.high,
        lm_eval_stderr=finite_or_none(lm_eval_stderr(correct, n)),
        math_verify=sum(item.grade.math_verify is GradeStatus.CORRECT for item in items) / n,
        marker_rate=sum(item.grade.marked for item in items) / n,
        truncation_rate=sum(item.truncated for item in items) / n,
        unscored=sum(item.grade.exact_match in _UNSCORED for item in items),
    )


def compare(
    items_by_arm: Mapping[str, Iterable[BenchItem]],
    reference: str,
    margin: float,
    seed: int,
    *,
    subjects: Collection[str] = (),
    controls: Collection[str] = (),
) -> Comparison:
    """Compare every other arm with `reference`, subject by subject and in total, on the problems common to both.

    Args:
        items_by_arm: the graded answers of each arm; an arm without common problems gets no rows.
        margin: non-inferiority margin, as a fraction.
        seed: of the totals' bootstrap.
        subjects: display order.
        controls: subjects that are no math: corrected among themselves, and left out of the totals.
    """
    assert reference in items_by_arm, f"reference={reference!r} is none of {list(items_by_arm)}"
    keyed = {arm: _by_key(items) for arm, items in items_by_arm.items()}
    comparisons: list[ComparisonRow] = []
    totals: list[TotalRow] = []
    for arm, ours in keyed.items():
        if arm == reference:
            continue
        pairs = _paired(ours, keyed[reference], subjects)
        families = (
            {subject: pair for subject, pair in pairs.items() if subject not in controls},
            {subject: pair for subject, pair in pairs.items() if subject in controls},
        )
        for family in families:
            comparisons.extend(_comparison_rows(arm, reference, family, margin))
        if families[0]:
            totals.extend(_total_row(kind, arm, reference, families[0], seed) for kind in ("macro", "micro"))
    return Comparison(tuple(comparisons), tuple(totals))


def _paired(
    ours: Mapping[Key, BenchItem], theirs: Mapping[Key, BenchItem], order: Collection[str]
) -> dict[str, _Pairs]:
    common = [key for key in theirs if key in ours]
    pairs: dict[str, _Pairs] = {}
    for subject in _subjects(common, order):
        keys = [key for key in common if key[0] == subject]
        pairs[subject] = _Pairs(
            np.array([is_correct(ours[key]) for key in keys]), np.array([is_correct(theirs[key]) for key in keys])
        )
    return pairs


def _comparison_rows(arm: str, reference: str, family: Mapping[str, _Pairs], margin: float) -> list[ComparisonRow]:
    p_values = [mcnemar_exact(*pairs.table()[1:3]) for pairs in family.values()]
    rows: list[ComparisonRow] = []
    for (subject, pairs), p, holm_p in zip(family.items(), p_values, holm(p_values).tolist(), strict=True):
        n11, n10, n01, n00 = pairs.table()
        n = n11 + n10 + n01 + n00
        paired = newcombe_paired(n11, n10, n01, n00)
        z = unpooled_z(n11 + n01, n, n11 + n10, n).z
        rows.append(
            ComparisonRow(
                arm=arm,
                reference=reference,
                subject=subject,
                n11=n11,
                n10=n10,
                n01=n01,
                n00=n00,
                difference=paired.difference,
                ci_low=paired.low,
                ci_high=paired.high,
                mcnemar_p=p,
                holm_p=holm_p,
                z_unpooled=None if math.isnan(z) else z,
                verdict=verdict(paired.low, paired.high, holm_p, margin),
            )
        )
    return rows


def _total_row(
    kind: Literal["macro", "micro"], arm: str, reference: str, family: Mapping[str, _Pairs], seed: int
) -> TotalRow:
    ours = {subject: pairs.arm for subject, pairs in family.items()}
    theirs = {subject: pairs.reference for subject, pairs in family.items()}
    total = stratified_paired_bootstrap(ours, theirs, kind=kind, draws=_BOOTSTRAP_DRAWS, seed=seed)

    def accuracy(strata: Mapping[str, np.ndarray]) -> float:
        if kind == "macro":
            return float(np.mean([stratum.mean() for stratum in strata.values()]))
        return float(np.concatenate(list(strata.values())).mean())

    return TotalRow(
        kind=kind,
        arm=arm,
        reference=reference,
        n=sum(len(stratum) for stratum in ours.values()),
        accuracy=accuracy(ours),
        reference_accuracy=accuracy(theirs),
        difference=total.difference,
        ci_low=total.low,
        ci_high=total.high,
    )
