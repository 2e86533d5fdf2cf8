"""A benchmark's plan: sizes of the subjects, stored answers, and the speed of earlier runs."""

import itertools
from types import SimpleNamespace

import pytest

from stethoscope import pipeline
from stethoscope.judging import arms
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.rate import note_rate
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import BenchArm, BenchPlanSpec, BenchSpec, EditRecipe
from stethoscope.results import BenchPlanResult


def bench_of(profile: Profile, n: int = 4, **fields: object) -> BenchSpec:
    recipe = EditRecipe(model=profile.model, task_vector=profile.task_vector(), layers={1: 1.0})  # type: ignore[dict-item]
    named = {"subjects": profile.problems.subjects, "n": n, "max_new_tokens": 6, "batch_size": 4} | fields
    chosen = (arms.BASE, BenchArm(name="recipe", recipe=recipe))
    return BenchSpec(model=profile.model, problems=profile.problems, arms=chosen, **named)  # type: ignore[arg-type]


def plan(spec: BenchSpec, context: Context, after: str = "") -> BenchPlanResult:
    outcome = pipeline.run(BenchPlanSpec(bench=spec, after=after), context, Progress())
    assert isinstance(outcome.result, BenchPlanResult)
    assert outcome.run_id is None, "a plan is no run of the history"
    return outcome.result


def test_what_is_stored_is_counted_by_arm_whatever_run_has_answered_it(pico_profile: Profile, context: Context) -> None:
    spec = bench_of(pico_profile)
    before = plan(spec, context)
    assert before.stored == {"base": 0, "recipe": 0}
    assert before.answers_per_s is None
    base_alone = spec.model_copy(update={"arms": (arms.BASE,), "n": 3, "block_size": 2, "margin": 0.1})
    pipeline.run(base_alone, context, Progress())
    after = plan(spec, context)
    assert after.stored == {"base": 3 * len(spec.subjects), "recipe": 0}
    assert after.answers_per_s is not None
    assert after.answers_per_s > 0
    assert plan(bench_of(pico_profile, max_new_tokens=7), context).stored["base"] == 0, "another limit, other answers"
    assert plan(bench_of(pico_profile, max_new_tokens=7), context).answers_per_s is None


def test_the_rate_is_the_median_of_what_was_generated(
    pico_profile: Profile, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = bench_of(pico_profile)
    ticks = itertools.count()
    monkeypatch.setattr("stethoscope.pipeline.answering.time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    pipeline.run(spec, context, Progress())  # one block of each of two arms, a second each
    n_answers = 2 * len(spec.subjects) * spec.n
    assert plan(spec, context).answers_per_s == n_answers / 2
    pipeline.run(spec.model_copy(update={"margin": 0.1}), context, Progress())  # all of it is in the store
    assert plan(spec, context).answers_per_s == n_answers / 2
    for rate in (1.0, 2.0, 100.0, 3.0, 4.0):
        note_rate(spec, context, 10, 10 / rate, Progress())
    note_rate(spec, context, 0, 5.0, Progress())
    assert plan(spec, context).answers_per_s == pytest.approx(3.0), "of the newest five"
    wider = spec.model_copy(update={"batch_size": 5})
    assert plan(wider, context).answers_per_s is None


def test_a_plan_tells_how_many_problems_there_are(pico_profile: Profile, context: Context) -> None:
    few = plan(bench_of(pico_profile, n=4), context).available
    assert set(few) == set(pico_profile.problems.subjects)
    beyond = plan(bench_of(pico_profile, n=10_000), context)
    assert beyond.available == few
    assert beyond.stored == {"base": 0, "recipe": 0}
