"""A frozen prediction is tested on planted answers: win, missing data, and prediction made too late."""

import math
import random

import numpy as np
import pytest

from stethoscope.judging import arms
from stethoscope.judging.layer_claims import decider, layer_claims
from stethoscope.judging.predictions import (
    BenchRun,
    Outcome,
    how_picked,
    outcome,
    random_pick,
    runs_of,
    same_claim,
)
from stethoscope.records import (
    BenchArm,
    BenchSpec,
    DiagnoseSpec,
    EditRecipe,
    Grade,
    GradeStatus,
    ModelRef,
    Prediction,
    ProblemsRef,
    ProjectedEdit,
    SaeRef,
    TaskVectorRef,
)
from stethoscope.results import BenchItem, BenchResult
from stethoscope.statistics import difference_to_draws

MODEL = ModelRef(id="embedded:base")
PROBLEMS = ProblemsRef(
    problems="p", controls="c", shots="s", subjects=("algebra", "geometry"), control_names=("facts",)
)
DIAGNOSIS = DiagnoseSpec(model=MODEL, saes=SaeRef(location="saes"), problems=PROBLEMS, control="facts")
ORDER = (5, 4, 3, 2, 1, 0, 6, 7, 8, 9)
RECIPE = EditRecipe(
    model=MODEL,
    task_vector=TaskVectorRef(name="math", tuned="t"),
    layers={4: 1.0, 5: 0.5},  # type: ignore[arg-type]
)
PREDICTION = Prediction(recipe=RECIPE, diagnosis=DIAGNOSIS, subject="algebra", picked="top", scores=(0.4, 0.5))
RATES = {"recipe": 0.8, "random": 0.4, "last": 0.4, "bottom": 0.4, "all": 0.8}


def bench(draws: int = 3, *, controls: tuple[str, ...] = ("random", "last", "bottom", "all"), **fields) -> BenchSpec:
    chosen = [arms.BASE, BenchArm(name="recipe", recipe=fields.pop("recipe", RECIPE))]
    recipe = chosen[1].recipe
    assert recipe is not None
    if "random" in controls:
        chosen += arms.random_layers(recipe, range(10), draws=draws)
    if "last" in controls:
        chosen.append(arms.last_layers(recipe, range(10)))
    if "bottom" in controls:
        chosen.append(arms.bottom_layers(recipe, range(10), ORDER))
    if "all" in controls:
        chosen.append(arms.all_layers(recipe, range(10)))
    return BenchSpec(
        model=MODEL, problems=PROBLEMS, arms=tuple(chosen), subjects=("algebra", "geometry", "facts"), **fields
    )


def answers(spec: BenchSpec, rates: dict[str, float], n: int = 100) -> BenchResult:
    """Independent answers: each arm is right at the rate of its kind; on the control corpus always the other way."""
    generator, items = random.Random(3), []
    for arm in spec.arms:
        rate = rates.get(arm.name.split(" ")[0], 0.3)
        for subject in spec.subjects:
            for number in range(n):
                right = generator.random() < (rate if subject != "facts" else 1 - rate)
                status = GradeStatus.CORRECT if right else GradeStatus.INCORRECT
                grade = Grade(exact_match=status, math_verify=GradeStatus.CORRECT, marked=True)
                items.append(
                    BenchItem(
                        arm=arm.name,
                        subject=subject,
                        problem_id=f"{number}",
                        problem="?",
                        gold="1",
                        completion="1",
                        n_tokens=1,
                        truncated=False,
                        grade=grade,
                    )
                )
    return BenchResult(
        spec=spec, arms=(), comparisons=(), totals=(), items=tuple(items), certificates={}, complete=True
    )


def judged(
    spec: BenchSpec,
    rates: dict[str, float] = RATES,
    *,
    runs_before: int = 90,
    started: int = 100,
    others: tuple[BenchRun, ...] = (),
) -> Outcome:
    run = BenchRun("r-now", started, spec)
    found = outcome(PREDICTION, runs_before, run, answers(spec, rates), (run, *others))
    assert found is not None
    return found


def test_a_pick_that_wins_is_better_than_its_controls_and_level_with_all_layers() -> None:
    found = judged(bench())
    assert [row.control for row in found.rows] == ["random", "bottom", "last", "all"]
    random_row, bottom, last, everything = found.rows
    assert [row.verdict for row in (random_row, bottom, last)] == ["better"] * 3
    assert random_row.difference == pytest.approx(0.4, abs=0.08)
    assert random_row.draws == 3
    assert random_row.n == 200, "two subjects; the control corpus is no part of the claim"
    assert everything.verdict in ("inconclusive", "not worse by more than the margin")
    assert everything.ci_low < 0 < everything.ci_high
    assert found.missing == ()
    assert found.same_recipe
    assert found.foretold
    assert found.frozen_first


def test_a_pick_that_loses_is_worse_and_one_like_chance_is_neither() -> None:
    assert judged(bench(), RATES | {"recipe": 0.1}).rows[0].verdict == "worse"
    level = judged(bench(), RATES | {"recipe": 0.4}).rows[0]
    assert level.ci_low < 0 < level.ci_high
    assert level.verdict == "inconclusive"


def test_holm_is_over_the_controls() -> None:
    rows = judged(bench(), RATES | {"recipe": 0.5}).rows
    by_p = sorted(rows, key=lambda row: row.p)
    assert by_p[0].p_holm == pytest.approx(min(1.0, 4 * by_p[0].p))
    assert by_p[0].p_holm > by_p[0].p
    close = judged(bench(), RATES | {"recipe": 0.52}).rows[0]
    assert close.p < 0.05 < close.p_holm
    assert close.ci_low > 0
    assert close.verdict == "not worse by more than the margin", "by the corrected p, not by its own"


def test_controls_make_no_claims_of_their_own() -> None:
    spec = bench()
    claims = layer_claims(spec, answers(spec, RATES, 20).items, decider(0.03, None))
    assert {claim.arm for claim in claims} == {"recipe"}
    assert len(claims) == 4


def test_missing_controls_are_named_and_one_draw_is_too_few() -> None:
    found = judged(bench(draws=1, controls=("random", "last")))
    assert found.missing == ("random", "bottom", "all")
    assert [row.control for row in found.rows] == ["last"], "nothing is said about random layers from one draw"
    assert judged(bench(controls=())).rows == ()


def test_controls_with_other_strengths_are_no_controls() -> None:
    weak = RECIPE.model_copy(update={"master_alpha": 0.5})
    spec = bench()
    swapped = tuple(
        BenchArm(name=arm.name, recipe=arms.last_layers(weak, range(10)).recipe) if arm.name.startswith("last") else arm
        for arm in spec.arms
    )
    found = judged(spec.model_copy(update={"arms": swapped}))
    assert "last" in found.missing
    assert "last" not in [row.control for row in found.rows]


def test_frozen_after_the_start_is_no_prediction() -> None:
    late = judged(bench(), runs_before=100)
    assert not late.frozen_first
    assert not late.foretold


def test_answers_before_the_freeze_are_told_and_later_or_other_ones_are_not() -> None:
    spec = bench()
    earlier = BenchRun("r-early", 50, bench(controls=(), seed=7))
    later = BenchRun("r-later", 95, spec)
    other_split = BenchRun("r-dev", 50, bench(split="dev"))
    other_edit = BenchRun("r-other", 50, bench(recipe=RECIPE.model_copy(update={"layers": {1: RECIPE.layers[4]}})))
    other_subject = BenchRun("r-facts", 50, spec.model_copy(update={"subjects": ("precalculus",)}))
    found = judged(spec, others=(earlier, later, other_split, other_edit, other_subject))
    assert found.used_before == ("r-early",)
    assert not found.foretold
    assert [run.run_id for run in runs_of(RECIPE, (earlier, other_edit))] == ["r-early"]


def test_which_arm_is_meant() -> None:
    stronger = RECIPE.model_copy(update={"master_alpha": 1.5})
    loose = judged(bench(recipe=stronger))
    assert not loose.same_recipe
    both = bench()
    both = both.model_copy(update={"arms": (BenchArm(name="strong", recipe=stronger), *both.arms)})
    assert judged(both).arm == "recipe", "the very recipe comes before a looser match"
    projected = RECIPE.model_copy(update={"edit_type": ProjectedEdit(diagnosis=DIAGNOSIS, subject="algebra", top_k=4)})
    assert same_claim(projected, projected)
    assert not same_claim(RECIPE, projected)
    elsewhere = RECIPE.model_copy(update={"layers": {4: RECIPE.layers[4]}})
    spec = bench(recipe=elsewhere)
    run = BenchRun("r", 100, spec)
    assert outcome(PREDICTION, 90, run, answers(spec, RATES, 2), ()) is None


def test_only_problems_that_every_arm_answered_count() -> None:
    spec = bench()
    whole = answers(spec, RATES, 40)
    lacking = {arm.name for arm in spec.arms if arm.name.startswith("last")}
    lacking.add(next(arm.name for arm in spec.arms if arm.name.startswith("random")))
    kept = [item for item in whole.items if not (item.arm in lacking and int(item.problem_id) >= 25)]
    run = BenchRun("r", 100, spec)
    partial = whole.model_copy(update={"items": tuple(kept), "complete": False})
    found = outcome(PREDICTION, 90, run, partial, ())
    assert found is not None
    assert {row.control: row.n for row in found.rows} == {"random": 50, "bottom": 80, "last": 50, "all": 80}


def test_how_layers_were_picked_is_checked_not_believed() -> None:
    assert how_picked((3, 4, 5), ORDER, 10, None) == "top"
    assert how_picked((7, 8, 9), ORDER, 10, None) == "bottom"
    assert how_picked((0, 4, 5), ORDER, 10, None) == "hand"
    drawn = random_pick(10, 3, 8)
    assert how_picked(drawn, ORDER, 10, 8) == "random"
    assert how_picked((0, 4, 5), ORDER, 10, 8) == "hand"
    assert how_picked((), ORDER, 10, None) == "hand"


def test_random_layers_follow_their_seed_and_are_spread_evenly() -> None:
    assert random_pick(10, 4, 3) == random_pick(10, 4, 3)
    assert random_pick(4, 9, 0) == (0, 1, 2, 3)
    seen = np.zeros(10)
    for seed in range(2000):
        seen[list(random_pick(10, 3, seed))] += 1
    assert seen == pytest.approx(600, abs=5 * math.sqrt(2000 * 0.3 * 0.7))


def test_the_interval_covers_the_truth_over_problems_and_over_draws() -> None:
    generator = np.random.default_rng(0)
    covered, narrow, trials, n, k = 0, 0, 400, 60, 4
    for _ in range(trials):  # draws differ in their own accuracy: mean .5, sd .15; ours is .6
        ours = {s: generator.random(n) < 0.6 for s in "ab"}
        rates = np.clip(generator.normal(0.5, 0.15, k), 0, 1)
        draws = {s: generator.random((k, n)) < rates[:, None] for s in "ab"}
        found = difference_to_draws(ours, draws)
        covered += found.low <= 0.1 <= found.high
        without = difference_to_draws(ours, {s: draws[s].mean(axis=0, keepdims=True) for s in "ab"})
        narrow += without.low <= 0.1 <= without.high
    assert covered / trials >= 0.93  # 95% nominal; binomial sd 1.1%
    assert narrow / trials < 0.85, "problems alone do not account for the draws"


def test_a_fixed_control_is_tested_at_its_nominal_level() -> None:
    generator = np.random.default_rng(1)
    wrong = [
        difference_to_draws({"a": generator.random(80) < 0.5}, {"a": generator.random((1, 80)) < 0.5}).p < 0.05
        for _ in range(1500)
    ]
    assert 0.03 <= np.mean(wrong) <= 0.065  # sd .0056; the half problems make it a little careful


def test_agreement_everywhere_is_no_certainty() -> None:
    right = np.ones(20, dtype=bool)
    level = difference_to_draws({"a": right}, {"a": right[None]})
    assert level.difference == 0
    assert level.low < -0.01
    assert level.p == pytest.approx(1.0)
    apart = difference_to_draws({"a": right}, {"a": ~right[None]})
    assert apart.difference == 1
    assert apart.low < 1 <= apart.high


def test_the_total_is_macro() -> None:
    ours = {"a": np.ones(100, dtype=bool), "b": np.zeros(10, dtype=bool)}
    other = {"a": np.zeros((1, 100), dtype=bool), "b": np.zeros((1, 10), dtype=bool)}
    assert difference_to_draws(ours, other).difference == pytest.approx(0.5)
