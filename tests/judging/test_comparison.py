"""Arms are paired by problem, families are corrected separately, and a planted table gives its own numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stethoscope.judging.comparison import arm_rows, compare, judge
from stethoscope.judging.layer_claims import decider
from stethoscope.records import BenchArm, BenchSpec, Grade, GradeStatus, ModelRef, ProblemsRef
from stethoscope.results import BenchItem
from stethoscope.statistics import holm, mcnemar_exact, newcombe_paired

DECIDE = decider(0.03, None)


def item(arm: str, subject: str, number: int, status: GradeStatus | bool, **fields: bool) -> BenchItem:
    if isinstance(status, bool):
        status = GradeStatus.CORRECT if status else GradeStatus.INCORRECT
    return BenchItem(
        arm=arm,
        subject=subject,
        problem_id=f"{number:016x}",
        problem="p",
        gold="g",
        completion="c",
        n_tokens=1,
        truncated=fields.get("truncated", False),
        repetitive=fields.get("repetitive", False),
        grade=Grade(exact_match=status, math_verify=GradeStatus.CORRECT, marked=fields.get("marked", True)),
    )


def planted(table: tuple[int, int, int, int], subject: str = "algebra") -> tuple[list[BenchItem], list[BenchItem]]:
    """Items of an arm and of the reference with the 2x2 table (n11, n10, n01, n00)."""
    cells = [pair for pair, n in zip([(1, 1), (1, 0), (0, 1), (0, 0)], table, strict=True) for _ in range(n)]
    ours = [item("edited", subject, number, bool(right)) for number, (right, _) in enumerate(cells)]
    theirs = [item("base", subject, number, bool(right)) for number, (_, right) in enumerate(cells)]
    return ours, theirs


def test_an_arm_s_row() -> None:
    items = [
        item("edited", "algebra", 0, True),
        item("edited", "algebra", 1, GradeStatus.TIMEOUT, truncated=True),
        item("edited", "algebra", 2, GradeStatus.UNPARSABLE),
        item("edited", "algebra", 3, GradeStatus.NO_ANSWER, marked=False),
        item("edited", "geometry", 0, True),
    ]
    geometry, algebra = arm_rows(items, "sha256-x", ("geometry", "algebra"))
    assert (algebra.arm, algebra.recipe_id, algebra.subject, algebra.n, algebra.correct) == (
        "edited",
        "sha256-x",
        "algebra",
        4,
        1,
    )
    assert (algebra.accuracy, algebra.math_verify, algebra.marker_rate) == (0.25, 1.0, 0.75)
    assert (algebra.truncation_rate, algebra.no_answer_rate, algebra.repetition_rate) == (0.25, 0.25, 0.0)
    assert (algebra.n_timeout, algebra.n_unparsable, algebra.accuracy_if_right) == (1, 1, 0.75)
    assert geometry.accuracy_if_right is None
    assert algebra.ci_low < 0.25 < algebra.ci_high
    assert algebra.lm_eval_stderr == pytest.approx(0.25)
    assert geometry.lm_eval_stderr is None
    assert arm_rows([]) == []


def test_the_reference_table_of_newcombe() -> None:
    ours, theirs = planted((59, 6, 16, 80))
    (row,), totals = compare({"base": theirs, "edited": ours}, "base", DECIDE, 0)
    assert (row.n11, row.n10, row.n01, row.n00) == (59, 6, 16, 80)
    assert round(row.difference, 4) == -0.0621
    assert (round(row.ci_low, 4), round(row.ci_high, 4)) == (-0.1186, -0.0046)
    assert row.mcnemar_p == row.holm_p == mcnemar_exact(6, 16)
    assert row.z_unpooled is not None
    assert row.z_unpooled < 0  # the arm is lower
    assert row.verdict == "inconclusive"  # p .052: the interval alone does not decide
    assert [total.kind for total in totals] == ["macro", "micro"]
    for total in totals:
        assert total.n == 161
        assert total.difference == pytest.approx(row.difference)
        assert (total.accuracy, total.reference_accuracy) == pytest.approx((65 / 161, 75 / 161))
        assert (total.ci_low, total.ci_high) == pytest.approx((row.ci_low, row.ci_high), abs=0.015)


def test_pairs_are_matched_by_problem_not_by_place() -> None:
    ours, theirs = planted((20, 10, 2, 18))
    shuffled = [ours[place] for place in np.random.default_rng(0).permutation(len(ours))]
    assert compare({"base": theirs, "edited": shuffled}, "base", DECIDE, 0) == compare(
        {"base": theirs, "edited": ours}, "base", DECIDE, 0
    )


def test_only_common_finished_problems_count() -> None:
    ours, theirs = planted((5, 5, 0, 5))
    extra_ours = [item("edited", "algebra", 100 + number, True) for number in range(30)]
    extra_theirs = [item("base", "algebra", 200 + number, True) for number in range(40)]
    other_subject = [item("base", "geometry", number, True) for number in range(10)]  # the same ids, another subject
    (row,), totals = compare(
        {"base": theirs + extra_theirs + other_subject, "edited": ours + extra_ours}, "base", DECIDE, 0
    )
    assert (row.subject, row.n11, row.n10, row.n01, row.n00) == ("algebra", 5, 5, 0, 5)
    assert totals[0].n == 15
    assert compare({"base": theirs, "edited": extra_ours}, "base", DECIDE, 0) == ((), ())


def test_holm_is_over_the_subjects_of_one_arm_and_controls_are_apart() -> None:
    tables = {"algebra": (10, 12, 1, 10), "geometry": (10, 6, 4, 10), "facts": (40, 0, 6, 4)}
    arms: dict[str, list[BenchItem]] = {"base": [], "edited": []}
    for subject, table in tables.items():
        ours, theirs = planted(table, subject)
        arms["edited"] += ours
        arms["base"] += theirs
    comparisons, totals = compare(arms, "base", DECIDE, 0, subjects=tuple(tables), controls=("facts",))
    rows = {row.subject: row for row in comparisons}
    assert list(rows) == list(tables)
    expected = holm([mcnemar_exact(12, 1), mcnemar_exact(6, 4)])
    assert [rows["algebra"].holm_p, rows["geometry"].holm_p] == pytest.approx(expected.tolist())
    assert rows["facts"].holm_p == mcnemar_exact(0, 6)
    assert rows["algebra"].verdict == "better"
    assert rows["facts"].verdict == "worse"
    macro, micro = totals
    assert macro.n == micro.n == 33 + 30
    assert macro.difference == pytest.approx((11 / 33 + 2 / 30) / 2)
    assert micro.difference == pytest.approx(13 / 63)
    assert macro.accuracy - macro.reference_accuracy == pytest.approx(macro.difference)
    assert micro.accuracy - micro.reference_accuracy == pytest.approx(micro.difference)


def test_every_arm_meets_the_reference_once() -> None:
    ours, theirs = planted((5, 3, 1, 5))
    third = [row.model_copy(update={"arm": "all layers"}) for row in ours]
    comparisons, totals = compare({"base": theirs, "edited": ours, "all layers": third}, "base", DECIDE, 7)
    assert [row.arm for row in comparisons] == ["edited", "all layers"]
    assert [(total.arm, total.kind) for total in totals] == [
        ("edited", "macro"),
        ("edited", "micro"),
        ("all layers", "macro"),
        ("all layers", "micro"),
    ]
    assert all(row.reference == "base" for row in comparisons)


@given(st.tuples(*[st.integers(0, 25)] * 4).filter(lambda table: sum(table) > 0))
@settings(max_examples=40, deadline=None)
def test_any_table_gives_finite_json_and_one_of_four_verdicts(table: tuple[int, int, int, int]) -> None:
    ours, theirs = planted(table)
    (row,), totals = compare({"base": theirs, "edited": ours}, "base", DECIDE, 0)
    assert row.verdict in {"better", "worse", "not worse by more than the margin", "inconclusive"}
    assert (row.ci_low, row.ci_high) == (newcombe_paired(*table).low, newcombe_paired(*table).high)
    for record in (row, *totals):
        assert type(record).model_validate_json(record.model_dump_json()) == record
    (swapped,), _ = compare({"base": theirs, "edited": ours}, "edited", DECIDE, 0)
    assert swapped.difference == -row.difference
    assert (swapped.n10, swapped.n01) == (row.n01, row.n10)


def graded(row: BenchItem, status: GradeStatus) -> BenchItem:
    return row.model_copy(update={"grade": row.grade.model_copy(update={"exact_match": status})})


def test_the_e_value_of_a_comparison_is_of_its_discordant_pairs() -> None:
    ours, theirs = planted((5, 40, 15, 5))
    (row,), _ = compare({"base": theirs, "edited": ours}, "base", DECIDE, 0)
    assert round(row.e_value, 1) == 38.9


def test_unscored_answers_are_bounded_from_both_sides() -> None:
    ours, theirs = planted((40, 30, 0, 30))
    statuses = [GradeStatus.TIMEOUT, GradeStatus.UNPARSABLE] * 2
    unscored = [graded(row, status) for row, status in zip(ours[70:74], statuses, strict=True)]
    other = graded(theirs[45], GradeStatus.UNPARSABLE)
    ours, theirs = ours[:70] + unscored + ours[74:], [*theirs[:45], other, *theirs[46:]]
    (row,), _ = compare({"base": theirs, "edited": ours}, "base", DECIDE, 0)
    assert (row.n11, row.n10, row.n01, row.n00) == (40, 30, 0, 30), "counted as wrong"
    bounds = row.sensitivity
    assert bounds is not None
    assert bounds.unscored == 5
    assert bounds.difference_low == pytest.approx(0.29)  # the base's one would be right
    assert bounds.ci_low == newcombe_paired(41, 29, 0, 30).low
    assert bounds.difference_high == pytest.approx(0.34)  # the arm's four would be right
    assert bounds.ci_high == newcombe_paired(40, 34, 0, 26).high
    assert bounds.verdict_low == bounds.verdict_high == row.verdict == "better"
    (sound,), _ = compare(dict(zip(("edited", "base"), planted((40, 30, 0, 30)), strict=True)), "base", DECIDE, 0)
    assert sound.sensitivity is None


def test_unscored_answers_can_decide_the_verdict_and_that_is_told() -> None:
    ours, theirs = planted((40, 6, 6, 48))
    ours = [*ours[:52], *(graded(row, GradeStatus.TIMEOUT) for row in ours[52:92]), *ours[92:]]
    (row,), _ = compare({"base": theirs, "edited": ours}, "base", DECIDE, 0)
    assert row.sensitivity is not None
    assert row.sensitivity.verdict_low == "inconclusive"
    assert (row.verdict, row.sensitivity.verdict_high) == ("inconclusive", "better")


def test_a_verdict_is_by_holms_p_and_not_by_the_subjects_own() -> None:
    tables = {"algebra": (20, 12, 3, 25), "geometry": (20, 5, 5, 30), "number_theory": (20, 6, 5, 29)}
    arms: dict[str, list[BenchItem]] = {"base": [], "edited": []}
    for subject, table in tables.items():
        for name, items in zip(("edited", "base"), planted(table, subject), strict=True):
            arms[name] += items
    rows = compare(arms, "base", DECIDE, 0)[0]
    algebra = next(row for row in rows if row.subject == "algebra")
    assert algebra.mcnemar_p < 0.05 < algebra.holm_p
    assert algebra.ci_low > 0
    assert algebra.verdict == "not worse by more than the margin"
    alone, _ = compare({name: items[:60] for name, items in arms.items()}, "base", DECIDE, 0)
    assert alone[0].verdict == "better"


def spec_of(split: str = "test", margin: float = 0.03) -> BenchSpec:
    problems = ProblemsRef(problems="p", controls="c", shots="s", subjects=("algebra",), control_names=("facts",))
    arms = (BenchArm(name="base"), BenchArm(name="edited"))
    fields = {"split": split, "margin": margin}
    return BenchSpec(model=ModelRef(id="m"), problems=problems, arms=arms, subjects=("algebra", "facts"), **fields)


def test_only_a_finished_benchmark_of_test_problems_gives_a_verdict() -> None:
    ours, theirs = planted((20, 30, 0, 50))
    answers, ids = {"base": theirs, "edited": ours}, {"base": None, "edited": "sha256-x"}
    final = judge(spec_of(), answers, ids, complete=True)
    assert (final.no_verdict, final.comparisons[0].verdict) == (None, "better")
    tuning = judge(spec_of("dev"), answers, ids, complete=True)
    assert "dev problems, which are used for tuning" in str(tuning.no_verdict)
    partial = judge(spec_of(), answers, ids, complete=False)
    assert "only e-values" in str(partial.no_verdict)
    for told in (tuning, partial):
        assert told.comparisons[0].verdict is None
        assert told.comparisons[0].difference == final.comparisons[0].difference, "the numbers stay"
    assert [row.recipe_id for row in final.arms] == [None, "sha256-x"]
    wide, narrow = (
        judge(
            spec_of(margin=margin),
            dict(zip(("edited", "base"), planted((60, 4, 6, 60)), strict=True)),
            ids,
            complete=True,
        )
        .comparisons[0]
        .verdict
        for margin in (0.2, 0.03)
    )
    assert (wide, narrow) == ("not worse by more than the margin", "inconclusive")


def test_an_arm_collapses_against_its_reference_only() -> None:
    theirs = [item("base", "algebra", number, True, marked=number >= 30) for number in range(100)]
    broken = [
        item("edited", "algebra", number, False, repetitive=number < 40, marked=number >= 30, truncated=number < 9)
        for number in range(100)
    ]
    ids = {"base": None, "edited": "sha256-x"}
    base, edited = judge(spec_of(), {"base": theirs, "edited": broken}, ids, complete=True).arms
    assert base.collapsed is None
    assert edited.collapsed == "Answers: 40% ending in a loop (reference 0%)."
    assert edited.repetition_rate == 0.4
    back = judge(spec_of(), {"base": broken, "edited": theirs}, ids, complete=True).arms[1]
    assert back.collapsed is None, "fewer loops are no collapse"


@pytest.mark.parametrize(
    ("looping", "n", "alarm"),
    [
        (13, 100, True),
        (12, 100, False),  # enough of a rise, but its interval at 99.9% reaches zero; at 95% it does not
        (99, 1000, False),  # beyond doubt, but less than ten points
        (100, 1000, True),
    ],
)
def test_a_collapse_is_ten_points_beyond_doubt(looping: int, n: int, alarm: bool) -> None:
    theirs = [item("base", "algebra", number, True) for number in range(n)]
    ours = [item("edited", "algebra", number, True, repetitive=number < looping) for number in range(n)]
    arms = judge(spec_of(), {"base": theirs, "edited": ours}, {"base": None, "edited": "x"}, complete=True).arms
    assert bool(arms[1].collapsed) == alarm
