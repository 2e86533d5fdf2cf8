"""From graded answers to verdicts: accuracy by arm, then comparisons on the problems that both arms have finished.

An arm and the reference are matched by (subject, problem id). A problem that only one of them has finished counts in
that arm's own row, but not in comparisons. Correct means exact_match; timeouts and unparsable answers are wrong, and
are shown separately with their possible effect. Holm's correction is over the subjects of one arm. Control corpora are
a separate family and not part of the totals. A verdict needs all problems answered, and none of them used for tuning.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from stethoscope.judging.collapse import collapse
from stethoscope.judging.layer_claims import Decide, decider, layer_claims
from stethoscope.records import BenchSpec, GradeStatus, finite_or_none
from stethoscope.results import ArmRow, BenchItem, ComparisonRow, LayerClaim, Sensitivity, TotalRow
from stethoscope.statistics import (
    PairedDifference,
    cannot_reach,
    discordant_e_value,
    holm,
    lm_eval_stderr,
    mcnemar_exact,
    newcombe_paired,
    smallest_holm_p,
    smallest_mcnemar_p,
    stratified_paired_bootstrap,
    unpooled_z,
    wilson,
)

_UNSCORED = (GradeStatus.TIMEOUT, GradeStatus.UNPARSABLE)
_BOOTSTRAP_DRAWS = 10_000

Key = tuple[str, str]


class Comparison(NamedTuple):
    """Paired rows by arm and subject, and the macro and micro totals of each arm."""

    comparisons: tuple[ComparisonRow, ...]
    totals: tuple[TotalRow, ...]


class Judgement(NamedTuple):
    """Statistics of a benchmark's answers; the fields are those of `BenchResult`."""

    arms: tuple[ArmRow, ...]
    comparisons: tuple[ComparisonRow, ...]
    totals: tuple[TotalRow, ...]
    layer_claims: tuple[LayerClaim, ...]
    no_verdict: str | None


def judge(
    spec: BenchSpec,
    items_by_arm: Mapping[str, Iterable[BenchItem]],
    recipe_ids: Mapping[str, str | None],
    *,
    complete: bool,
    idle: Collection[str] = (),
) -> Judgement:
    """Return rows, comparisons, totals and claims about layers of the arms of `spec` that have answers.

    Args:
        items_by_arm: answers of completed blocks only, by the arm's name; the first arm is the reference.
        recipe_ids: recipe id by the arm's name, None for the base.
        complete: whether every arm has answered every problem; otherwise there are no verdicts.
        idle: arms whose weights equal the base; they get no verdict and are not controls.
    """
    no_verdict = why_no_verdict(spec, complete=complete)
    answers = {arm: list(items) for arm, items in items_by_arm.items()}
    reference = spec.arms[0].name
    rows = [
        row.model_copy(update={"collapsed": None if arm == reference else collapse(items, answers[reference], row)})
        for arm, items in answers.items()
        for row in arm_rows(items, recipe_ids[arm], spec.subjects)
    ]
    found = compare(
        answers,
        reference,
        decider(spec.margin, no_verdict),
        spec.seed,
        subjects=spec.subjects,
        controls=spec.problems.control_names,
        idle=idle,
    )
    claims = layer_claims(
        spec, [item for items in answers.values() for item in items], decider(spec.margin, no_verdict), idle
    )
    return Judgement(tuple(rows), found.comparisons, found.totals, claims, no_verdict)


def why_no_verdict(spec: BenchSpec, *, complete: bool) -> str | None:
    """Return a sentence saying why a benchmark gives no verdict; None if it gives one."""
    if spec.split != "test":
        return (
            f"These are {spec.split} problems, which are used for tuning. Use the numbers to choose settings; a "
            "verdict needs the test split."
        )
    if not complete:
        return (
            "Not all problems have been answered. Until the run is complete, only e-values are valid; intervals "
            "and p values are not."
        )
    return None


Table = tuple[int, int, int, int]  # n11, n10, n01, n00


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Correctness (bool [n] each) on the common problems of a subject, and which answers are unscored."""

    arm: np.ndarray
    reference: np.ndarray
    arm_unscored: np.ndarray
    reference_unscored: np.ndarray

    @property
    def unscored(self) -> int:
        """Number of pairs with at least one unscored answer."""
        return int((self.arm_unscored | self.reference_unscored).sum())

    def table(self) -> Table:
        """Return n11, n10, n01, n00; unscored answers count as wrong."""
        return _table(self.arm, self.reference)

    def against(self) -> Table:
        """Return the table if every unscored answer counted against the arm."""
        return _table(self.arm, self.reference | self.reference_unscored)

    def in_favour(self) -> Table:
        """Return the table if every unscored answer counted in favour of the arm."""
        return _table(self.arm | self.arm_unscored, self.reference)


def _table(arm: np.ndarray, reference: np.ndarray) -> Table:
    both, only_arm = int((arm & reference).sum()), int((arm & ~reference).sum())
    only_reference = int((~arm & reference).sum())
    return both, only_arm, only_reference, len(arm) - both - only_arm - only_reference


def is_correct(item: BenchItem) -> bool:
    """Return whether the answer is correct according to exact_match."""
    return item.grade.exact_match is GradeStatus.CORRECT


def _by_key(items: Iterable[BenchItem]) -> dict[Key, BenchItem]:
    return {(item.subject, item.problem_id): item for item in items}


def _subjects(items: Iterable[Key], order: Collection[str]) -> list[str]:
    """Return the subjects that occur, in the given order; other subjects follow in the order of their first item."""
    occurring = dict.fromkeys(subject for subject, _ in items)
    return [subject for subject in order if subject in occurring] + [s for s in occurring if s not in order]


def arm_rows(items: Iterable[BenchItem], recipe_id: str | None = None, subjects: Collection[str] = ()) -> list[ArmRow]:
    """Return one row per subject of one arm: accuracy with Wilson's interval, math_verify, marker and truncation rates.

    Args:
        items: graded answers of the arm; if a problem occurs twice, the last answer counts.
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
    status = [item.grade.exact_match for item in items]
    unscored = sum(map(_is_unscored, items))
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
        strict=(
            None
            if any(item.grade.strict is None for item in items)
            else sum(item.grade.strict is GradeStatus.CORRECT for item in items) / n
        ),
        golds_at_risk=sum(item.grade.gold_at_risk for item in items),
        marker_rate=sum(item.grade.marked for item in items) / n,
        truncation_rate=sum(item.truncated for item in items) / n,
        repetition_rate=sum(item.repetitive for item in items) / n,
        no_answer_rate=status.count(GradeStatus.NO_ANSWER) / n,
        n_unparsable=status.count(GradeStatus.UNPARSABLE),
        n_timeout=status.count(GradeStatus.TIMEOUT),
        accuracy_if_right=(correct + unscored) / n if unscored else None,
    )


def _is_unscored(item: BenchItem) -> bool:
    return item.grade.exact_match in _UNSCORED


def compare(
    items_by_arm: Mapping[str, Iterable[BenchItem]],
    reference: str,
    decide: Decide,
    seed: int,
    *,
    subjects: Collection[str] = (),
    controls: Collection[str] = (),
    idle: Collection[str] = (),
) -> Comparison:
    """Compare every other arm with `reference`, subject by subject and in total, on the problems common to both.

    Args:
        items_by_arm: the graded answers of each arm; an arm without common problems gets no rows.
        decide: function that maps an interval and Holm's p to a verdict.
        seed: seed of the bootstrap for totals.
        subjects: display order.
        controls: subjects that are control corpora; corrected separately and excluded from the totals.
        idle: arms that change nothing and get no verdict.
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
            comparisons.extend(_comparison_rows(arm, reference, family, _undecided if arm in idle else decide))
        if families[0]:
            totals.extend(_total_row(kind, arm, reference, families[0], seed) for kind in ("macro", "micro"))
    return Comparison(tuple(comparisons), tuple(totals))


def _undecided(low: float, high: float, holm_p: float) -> None:
    return None


def _paired(
    ours: Mapping[Key, BenchItem], theirs: Mapping[Key, BenchItem], order: Collection[str]
) -> dict[str, _Pairs]:
    common = [key for key in theirs if key in ours]
    pairs: dict[str, _Pairs] = {}
    for subject in _subjects(common, order):
        keys = [key for key in common if key[0] == subject]
        of_arm, of_reference = [ours[key] for key in keys], [theirs[key] for key in keys]
        pairs[subject] = _Pairs(
            np.array([is_correct(item) for item in of_arm]),
            np.array([is_correct(item) for item in of_reference]),
            np.array([_is_unscored(item) for item in of_arm]),
            np.array([_is_unscored(item) for item in of_reference]),
        )
    return pairs


class _Tested(NamedTuple):
    """One comparison of a family: the difference, McNemar's p, Holm's p, and the verdict."""

    table: Table
    paired: PairedDifference
    p: float
    holm_p: float
    cannot_be_significant: bool
    verdict: str | None


def _test(family: list[Table], decide: Decide) -> list[_Tested]:
    p_values = [mcnemar_exact(n10, n01) for _, n10, n01, _ in family]
    floors = smallest_holm_p(p_values, [smallest_mcnemar_p(n10 + n01) for _, n10, n01, _ in family])
    tested: list[_Tested] = []
    for table, p, holm_p, floor in zip(family, p_values, holm(p_values).tolist(), floors, strict=True):
        paired = newcombe_paired(*table)
        tested.append(_Tested(table, paired, p, holm_p, cannot_reach(floor), decide(paired.low, paired.high, holm_p)))
    return tested


def _comparison_rows(arm: str, reference: str, family: Mapping[str, _Pairs], decide: Decide) -> list[ComparisonRow]:
    tested = _test([pairs.table() for pairs in family.values()], decide)
    against = _test([pairs.against() for pairs in family.values()], decide)
    in_favour = _test([pairs.in_favour() for pairs in family.values()], decide)
    rows: list[ComparisonRow] = []
    for (subject, pairs), found, low, high in zip(family.items(), tested, against, in_favour, strict=True):
        n11, n10, n01, n00 = found.table
        n = sum(found.table)
        rows.append(
            ComparisonRow(
                arm=arm,
                reference=reference,
                subject=subject,
                n11=n11,
                n10=n10,
                n01=n01,
                n00=n00,
                difference=found.paired.difference,
                ci_low=found.paired.low,
                ci_high=found.paired.high,
                mcnemar_p=found.p,
                holm_p=found.holm_p,
                z_unpooled=finite_or_none(unpooled_z(n11 + n01, n, n11 + n10, n).z),
                e_value=discordant_e_value(n10, n01),
                verdict=found.verdict,
                cannot_be_significant=found.cannot_be_significant,
                sensitivity=_sensitivity(pairs.unscored, low, high) if pairs.unscored else None,
            )
        )
    return rows


def _sensitivity(unscored: int, against: _Tested, in_favour: _Tested) -> Sensitivity:
    return Sensitivity(
        unscored=unscored,
        difference_low=against.paired.difference,
        ci_low=against.paired.low,
        verdict_low=against.verdict,
        difference_high=in_favour.paired.difference,
        ci_high=in_favour.paired.high,
        verdict_high=in_favour.verdict,
    )


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
