"""Arms are paired by problem, families corrected apart, and a planted table comes out with its own numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stethoscope.minerva.comparison import arm_rows, compare
from stethoscope.records import Grade, GradeStatus
from stethoscope.results import BenchItem
from stethoscope.statistics import holm, mcnemar_exact, newcombe_paired


def item(
    arm: str, subject: str, number: int, status: GradeStatus | bool, *, truncated: bool = False, marked: bool = True
) -> BenchItem:
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
        truncated=truncated,
        grade=Grade(exact_match=status, math_verify=GradeStatus.CORRECT, marked=marked),
    )


def planted(table: tuple[int, int, int, int], subject: str = "algebra") -> tuple[list[BenchItem], list[BenchItem]]:
    """Items of an arm and of the reference whose 2x2 table is (n11, n10, n01, n00)."""
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
    assert (algebra.truncation_rate, algebra.unscored) == (0.25, 2)
    assert algebra.ci_low < 0.25 < algebra.ci_high
    assert algebra.lm_eval_stderr == pytest.approx(0.25)
    assert geometry.lm_eval_stderr is None
    assert arm_rows([]) == []


def test_the_reference_table_of_newcombe() -> None:
    ours, theirs = planted((59, 6, 16, 80))
    (row,), totals = compare({"base": theirs, "edited": ours}, "base", 0.03, 0)
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
    assert compare({"base": theirs, "edited": shuffled}, "base", 0.03, 0) == compare(
        {"base": theirs, "edited": ours}, "base", 0.03, 0
    )


def test_only_common_finished_problems_count() -> None:
    ours, theirs = planted((5, 5, 0, 5))
    extra_ours = [item("edited", "algebra", 100 + number, True) for number in range(30)]
    extra_theirs = [item("base", "algebra", 200 + number, True) for number in range(40)]
    other_subject = [item("base", "geometry", number, True) for number in range(10)]  # the same ids, another subject
    (row,), totals = compare(
        {"base": theirs + extra_theirs + other_subject, "edited": ours + extra_ours}, "base", 0.03, 0
    )
    assert (row.subject, row.n11, row.n10, row.n01, row.n00) == ("algebra", 5, 5, 0, 5)
    assert totals[0].n == 15
    assert compare({"base": theirs, "edited": extra_ours}, "base", 0.03, 0) == ((), ())


def test_holm_is_over_the_subjects_of_one_arm_and_controls_are_apart() -> None:
    tables = {"algebra": (10, 12, 1, 10), "geometry": (10, 6, 4, 10), "facts": (40, 0, 6, 4)}
    arms: dict[str, list[BenchItem]] = {"base": [], "edited": []}
    for subject, table in tables.items():
        ours, theirs = planted(table, subject)
        arms["edited"] += ours
        arms["base"] += theirs
    comparisons, totals = compare(arms, "base", 0.03, 0, subjects=tuple(tables), controls=("facts",))
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
    comparisons, totals = compare({"base": theirs, "edited": ours, "all layers": third}, "base", 0.03, 7)
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
    (row,), totals = compare({"base": theirs, "edited": ours}, "base", 0.03, 0)
    assert row.verdict in {"better", "worse", "not worse by more than the margin", "inconclusive"}
    assert (row.ci_low, row.ci_high) == (newcombe_paired(*table).low, newcombe_paired(*table).high)
    for record in (row, *totals):
        assert type(record).model_validate_json(record.model_dump_json()) == record
    (swapped,), _ = compare({"base": theirs, "edited": ours}, "edited", 0.03, 0)
    assert swapped.difference == -row.difference
    assert (swapped.n10, swapped.n01) == (row.n01, row.n10)
