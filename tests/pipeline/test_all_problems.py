"""n = "all", or above a subject's count: plan, result, text and report use each subject's own n."""

from pathlib import Path

import pytest

from stethoscope import pipeline
from stethoscope.judging import arms
from stethoscope.judging.verdicts import referee_text
from stethoscope.pipeline.bench import bench_problems
from stethoscope.pipeline.context import Context
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import BenchArm, BenchPlanSpec, BenchSpec, EditRecipe
from stethoscope.report import RunFacts, report_html
from stethoscope.results import BenchPlanResult, BenchResult
from stethoscope.statistics import wilson
from tests.conftest import write_problems
from tests.pipeline.test_bench import Watched, run

SIZES = {"number_theory": 7, "geometry": 3}


@pytest.fixture
def uneven(pico_profile: Profile, tmp_path: Path) -> Profile:
    """The pico profile with 7 problems of number theory and 3 of geometry."""
    folder = tmp_path / "uneven"
    for seed, (subject, n) in enumerate(SIZES.items(), start=3):
        written = write_problems(tmp_path / subject, (subject,), seed=seed, n=n)
        folder.mkdir(exist_ok=True)
        for split in ("train", "dev", "test"):
            with (folder / f"{split}.jsonl").open("a") as file:
                file.write((written / f"{split}.jsonl").read_text())
    problems = pico_profile.problems.model_copy(update={"problems": str(folder)})
    return pico_profile.model_copy(update={"problems": problems})


def bench_of(profile: Profile, **fields: object) -> BenchSpec:
    recipe = EditRecipe(model=profile.model, task_vector=profile.task_vector(), layers={1: 1.0})  # type: ignore[dict-item]
    named = {"subjects": tuple(SIZES), "n": "all", "max_new_tokens": 4, "batch_size": 4, "block_size": 4} | fields
    chosen = (arms.BASE, BenchArm(name="recipe", recipe=recipe))
    return BenchSpec(model=profile.model, problems=profile.problems, arms=chosen, **named)  # type: ignore[arg-type]


def sizes(result: BenchResult, arm: str = "recipe") -> dict[str, int]:
    return {row.subject: row.n for row in result.arms if row.arm == arm}


def test_every_subject_is_asked_whole_and_totals_differ(uneven: Profile, context: Context) -> None:
    result = run(bench_of(uneven), context)
    assert sizes(result) == result.asked == SIZES
    assert result.shortage is None, "all that there are were asked for"
    for row in result.arms:
        assert (row.ci_low, row.ci_high) == (wilson(row.correct, row.n).low, wilson(row.correct, row.n).high)
    assert {total.kind: total.n for total in result.totals} == {"macro": 10, "micro": 10}
    page = report_html(result, RunFacts("r1", "now", "done"))
    assert "all problems (number theory 7, geometry 3)" in page
    assert "3 to 7 test problems per subject" in referee_text(result, None)[0]


def test_beyond_a_subjects_count_takes_what_there_is_and_says_so(uneven: Profile, context: Context) -> None:
    result = run(bench_of(uneven, n=5), context)
    assert sizes(result) == result.asked == {"number_theory": 5, "geometry": 3}
    assert result.shortage == "Geometry has only 3 test problems; all of them are used."
    assert result.shortage in referee_text(result, None)[0]
    assert result.shortage in report_html(result, RunFacts("r1", "now", "done"))


def test_a_smaller_sample_is_a_part_of_all(uneven: Profile) -> None:
    def ids(n: object) -> dict[str, list[str]]:
        asked = bench_problems(bench_of(uneven, n=n))
        return {name: sorted(p.problem_id for p in asked if p.subject == name) for name in SIZES}

    few, every, beyond = ids(5), ids("all"), ids(10_000)
    assert every == beyond
    assert {name: len(found) for name, found in every.items()} == SIZES
    assert all(set(few[name]) <= set(every[name]) for name in SIZES)


def test_a_plan_counts_each_subject_with_its_own_n(uneven: Profile, context: Context) -> None:
    def plan(n: object) -> BenchPlanResult:
        found = pipeline.run(BenchPlanSpec(bench=bench_of(uneven, n=n)), context, Progress()).result
        assert isinstance(found, BenchPlanResult)
        return found

    run(bench_of(uneven, n=2), context)
    assert plan("all").available == SIZES
    assert plan("all").stored == {"base": 4, "recipe": 4}
    assert plan(10_000).stored == {"base": 4, "recipe": 4}


def test_all_problems_resume_where_they_stopped(uneven: Profile, context: Context, tmp_path: Path) -> None:
    from stethoscope.store.runs import RunStore

    spec = bench_of(uneven)
    first = pipeline.run(spec, context, Watched(items=9, for_now=True))
    partial = first.result
    assert isinstance(partial, BenchResult)
    assert not partial.complete
    assert partial.asked == SIZES
    resumed = run(spec, context)
    apart = Context(RunStore(tmp_path / "apart"), device="cpu")
    whole = run(spec, apart)
    apart.close()
    assert resumed.items == whole.items
    assert resumed.comparisons == whole.comparisons
