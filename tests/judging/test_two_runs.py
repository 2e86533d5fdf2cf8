"""Two runs are paired by problem, not by position, and refused if more than the recipe differs."""

from typing import Any

import pytest

from stethoscope.judging.two_runs import pair_runs
from stethoscope.profiles import MINI
from stethoscope.records import BenchArm, BenchSpec, EditRecipe, Grade, GradeStatus
from stethoscope.results import BenchItem, BenchResult


def a_run(right: dict[int, bool], *, base: str = "b", **more: Any) -> BenchResult:
    """A run whose recipe is correct on the marked problems, in this order; the base is always wrong."""
    recipe = EditRecipe(model=MINI.model, task_vector=MINI.task_vectors[0], layers={3: 1.0})  # type: ignore[dict-item]
    arms = (BenchArm(name="base"), BenchArm(name="recipe", recipe=recipe))
    spec = BenchSpec(model=MINI.model, problems=MINI.problems, arms=arms, subjects=("algebra",), n=4, **more)
    items = []
    for arm in ("base", "recipe"):
        for number, is_right in right.items():
            status = GradeStatus.CORRECT if is_right and arm == "recipe" else GradeStatus.INCORRECT
            grade = Grade(exact_match=status, math_verify=status, marked=True, answer="1")
            items.append(
                BenchItem(
                    arm=arm,
                    subject="algebra",
                    problem_id=f"{number:016x}",
                    problem="p",
                    gold="1",
                    completion=base if arm == "base" else "r",
                    n_tokens=1,
                    truncated=False,
                    grade=grade,
                )
            )
    return BenchResult(
        spec=spec, arms=(), comparisons=(), totals=(), items=tuple(items), certificates={}, complete=True
    )


ARMS, LABELS = ("recipe", "recipe"), ("A", "B")


def test_answers_are_paired_by_problem_and_the_sign_is_second_minus_first() -> None:
    first = a_run({0: True, 1: False, 2: False, 3: False, 9: True})
    second = a_run({8: True, 3: True, 2: True, 1: True, 0: True})  # another order, and a problem of its own
    found = pair_runs(first, second, ARMS, LABELS).paired
    assert found is not None
    (row,) = found.comparisons
    assert (row.n11, row.n10, row.n01, row.n00) == (1, 3, 0, 0)
    assert row.difference == pytest.approx(0.75)
    assert row.mcnemar_p == pytest.approx(0.25)
    assert row.verdict is None
    macro = next(total for total in found.totals if total.kind == "macro")
    assert (macro.reference_accuracy, macro.accuracy) == (0.25, 1.0)


ANOTHER_MODEL = MINI.model.model_copy(update={"dtype": "bfloat16"})
EDITED = EditRecipe(model=MINI.model, task_vector=MINI.task_vectors[0], layers={1: 1.0})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"max_new_tokens": 99}, "Different limits"),
        ({"chat_template": True}, "prompt formats"),
        ({"model": ANOTHER_MODEL}, "Different models"),
        ({"problems": MINI.problems.model_copy(update={"shots": "other.json"})}, "Different prompts"),
        ({"arms": (BenchArm(name="base", recipe=EDITED), BenchArm(name="recipe"))}, "Different references"),
    ],
)
def test_what_else_differs_is_said(more: dict[str, Any], said: str) -> None:
    other = a_run({0: True})
    other = other.model_copy(update={"spec": other.spec.model_copy(update=more)})
    found = pair_runs(a_run({0: True}), other, ARMS, LABELS)
    assert found.paired is None
    (obstacle,) = found.obstacles
    assert said in obstacle


def test_a_problem_that_was_asked_in_other_tokens_is_not_paired() -> None:
    dated = [
        result.model_copy(update={"items": tuple(i.model_copy(update={"prompt_id": day}) for i in result.items)})
        for day, result in (("1", a_run({0: True})), ("2", a_run({0: True})))
    ]
    (obstacle,) = pair_runs(*dated, ARMS, LABELS).obstacles
    assert "different tokens" in obstacle
    assert pair_runs(dated[0], dated[0], ARMS, LABELS).paired is not None
    assert pair_runs(dated[0], a_run({0: True}), ARMS, LABELS).paired is not None, "older runs name no prompt"


def test_a_problem_whose_gold_answer_changed_is_another_problem() -> None:
    first, second = a_run({0: True, 1: True}), a_run({0: True, 1: True})
    changed = tuple(
        item.model_copy(update={"gold": "2"}) if item.problem_id.endswith("1") else item for item in second.items
    )
    found = pair_runs(first, second.model_copy(update={"items": changed}), ARMS, LABELS).paired
    assert found is not None
    assert {item.problem_id for item in found.items} == {f"{0:016x}"}


def test_no_common_problem_is_said() -> None:
    assert "different problems" in pair_runs(a_run({0: True}), a_run({1: True}), ARMS, LABELS).obstacles[0]


def test_references_that_answered_differently_are_told() -> None:
    found = pair_runs(a_run({0: True}), a_run({0: True}, base="other"), ARMS, LABELS)
    assert not any("partial" in note for note in found.notes)
    stopped = pair_runs(a_run({0: True}), a_run({0: True}).model_copy(update={"complete": False}), ARMS, LABELS)
    assert any("At least one run is partial" in note for note in stopped.notes)
    assert stopped.paired is not None
    assert not stopped.paired.complete
    assert "answered 1 of 1 shared problems differently" in " ".join(found.notes)
