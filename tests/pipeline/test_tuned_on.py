"""Edits are never evaluated on the problems that they were chosen on, and the number of attempts is counted."""

import json
import shutil
from pathlib import Path

import pytest

from stethoscope import pipeline
from stethoscope.errors import Cancelled, CorpusError
from stethoscope.judging import arms
from stethoscope.minerva.sources import load_problems
from stethoscope.pipeline.bench import bench_problems
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.tuned_on import left_out
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import BenchArm, BenchSpec, DoseSpec, EditRecipe, GainSpec, ProbeSpec, RankSpec, Spec
from stethoscope.results import BenchResult
from stethoscope.store.runs import RunStore
from stethoscope.store.tuning import configurations_tried, put_tuned_on, tuned_on


def recipe_of(profile: Profile, layers: dict[int, float]) -> EditRecipe:
    named = {"model": profile.model, "task_vector": profile.task_vector(), "layers": layers}
    return EditRecipe.model_validate(named)


def bench_of(profile: Profile, *chosen: BenchArm, **fields: object) -> BenchSpec:
    defaults = {"subjects": profile.problems.subjects, "n": 4, "max_new_tokens": 4, "batch_size": 8}
    named = {"model": profile.model, "problems": profile.problems, "arms": (arms.BASE, *chosen)}
    return BenchSpec.model_validate(named | defaults | fields)


def judged(spec: BenchSpec, context: Context) -> BenchResult:
    result = pipeline.run(spec, context, Progress()).result
    assert isinstance(result, BenchResult)
    return result


@pytest.mark.parametrize("kind", ["probe", "dose", "rank", "gain", "diagnose"])
def test_what_is_chosen_on_test_problems_keeps_these_out(pico_profile: Profile, context: Context, kind: str) -> None:
    recipe, problems = recipe_of(pico_profile, {1: 1.0}), pico_profile.problems
    diagnosis = pico_profile.diagnose_spec(n_bootstrap=20, n_permutations=20)
    specs: dict[str, Spec] = {
        "probe": ProbeSpec(recipe=recipe, problems=problems, split="test", n=5, seed=3),
        "dose": DoseSpec(recipe=recipe, problems=problems, split="test", n=5, seed=3, alphas=(0.0, 1.0)),
        "rank": RankSpec(recipe=recipe, problems=problems, split="test", n=5, seed=3),
        "gain": GainSpec(diagnosis=diagnosis, task_vector=recipe.task_vector, split="test", n=5, seed=3, top_n=1),
        "diagnose": diagnosis.model_copy(update={"split": "test", "seed": 3}),
    }
    spec = bench_of(pico_profile)
    assert left_out(spec, context) == {}
    pipeline.run(specs[kind], context, Progress())
    seen = left_out(spec, context)
    n = 20 if kind == "diagnose" else 5
    sample = bench_problems(spec.model_copy(update={"n": n, "seed": 3}))
    for subject in problems.subjects:
        assert seen[subject] == {problem.problem_id for problem in sample if problem.subject == subject}
    result = judged(spec, context)
    assert result.excluded == dict.fromkeys(problems.subjects, n)
    answered = {item.problem_id for item in result.items}
    assert len(answered) == 8
    assert not answered & set().union(*seen.values())
    other = spec.model_copy(update={"model": spec.model.model_copy(update={"id": "another"})})
    assert left_out(other, context) == {}, "what was chosen for another model says nothing about this one"


def test_dev_and_the_live_probe_leave_the_test_split_whole(pico_profile: Profile, context: Context) -> None:
    spec, recipe = bench_of(pico_profile), recipe_of(pico_profile, {1: 1.0})
    pipeline.run(ProbeSpec(recipe=recipe, problems=pico_profile.problems, n=5), context, Progress())
    tuning = judged(spec.model_copy(update={"split": "dev"}), context)
    assert tuning.no_verdict is not None
    assert left_out(spec, context) == {}
    assert judged(spec, context).excluded == {}


def test_a_problem_of_dev_or_of_a_users_file_is_not_judged_on(
    pico_profile: Profile, context: Context, tmp_path: Path
) -> None:
    """A user's folder whose test split repeats problems of dev, of train, and ones used for tuning elsewhere."""
    source = Path(pico_profile.problems.problems)
    folder = Path(shutil.copytree(source, tmp_path / "mine"))
    lines = {split: (source / f"{split}.jsonl").read_text().splitlines() for split in ("train", "dev", "test")}
    numbers = [line for line in lines["test"] if json.loads(line)["subject"] == "geometry"]
    other = [line for line in lines["test"] if json.loads(line)["subject"] != "geometry"]
    of_dev = [line for line in lines["dev"] if json.loads(line)["subject"] == "geometry"][:3]
    of_train = [line for line in lines["train"] if json.loads(line)["subject"] == "geometry"][:2]
    (folder / "test.jsonl").write_text("\n".join([*numbers[:6], *of_dev, *of_train, *other]))
    problems = pico_profile.problems.model_copy(update={"problems": str(folder)})
    spec = bench_of(pico_profile, problems=problems, subjects=("geometry",))
    assert {subject: len(ids) for subject, ids in left_out(spec, context).items()} == {"geometry": 5}
    result = judged(spec, context)
    assert result.excluded == {"geometry": 5}
    assert judged(spec.model_copy(update={"n": 7}), context).asked == {"geometry": 6}
    (folder / "test.jsonl").write_text("\n".join([*of_dev, *of_train]))
    with pytest.raises(CorpusError, match="every test problem of geometry was used for tuning; got 5 problems"):
        judged(spec, context)
    (folder / "dev.jsonl").unlink()
    (folder / "train.jsonl").unlink()
    assert left_out(spec, context) == {}, "a folder with a test split alone"


def test_a_dev_benchmark_of_another_file_counts_by_the_problems_text(
    pico_profile: Profile, context: Context, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(pico_profile.problems.problems, tmp_path / "mine"))
    (folder / "dev.jsonl").write_text((folder / "test.jsonl").read_text())
    mine = pico_profile.problems.model_copy(update={"problems": str(folder)})
    tuning = judged(bench_of(pico_profile, problems=mine, split="dev"), context)
    spec = bench_of(pico_profile)
    assert {i for ids in left_out(spec, context).values() for i in ids} == {item.problem_id for item in tuning.items}


def test_one_file_of_ones_own_leaves_out_what_was_looked_at_in_another(
    pico_profile: Profile, context: Context, tmp_path: Path
) -> None:
    """The file is stored under a plain hash, and its test tenth contains problems that are also in the profile's dev
    split."""
    source = Path(pico_profile.problems.problems)
    lines = [line for split in ("dev", "test") for line in (source / f"{split}.jsonl").read_text().splitlines()]
    kept = tmp_path / "sha256-00"
    kept.write_text("\n".join(line for line in lines if json.loads(line)["subject"] == "geometry"))
    mine = pico_profile.problems.model_copy(update={"problems": str(kept), "subjects": ("geometry",)})
    spec = bench_of(pico_profile, problems=mine, subjects=("geometry",), n=1)
    held = {problem.problem_id for problem in load_problems(str(kept), "test")}
    assert left_out(spec, context) == {}
    n_dev = len([p for p in load_problems(str(source), "dev") if p.subject == "geometry"])
    tuning = judged(bench_of(pico_profile, subjects=("geometry",), n=n_dev, split="dev"), context)
    seen = held & {item.problem_id for item in tuning.items}
    assert seen
    assert set(left_out(spec, context)["geometry"]) == seen


class StopAtOnce(Progress):
    """Requests a stop at the first result."""

    def publish(self, result: object) -> None:
        self.cancel()


def test_a_stopped_look_counts_and_a_failed_one_does_not(pico_profile: Profile, context: Context) -> None:
    recipe, spec = recipe_of(pico_profile, {1: 1.0}), bench_of(pico_profile)
    with pytest.raises(CorpusError):
        pipeline.run(DoseSpec(recipe=recipe, problems=pico_profile.problems, split="test", n=999), context, Progress())
    assert left_out(spec, context) == {}
    with pytest.raises(Cancelled):
        pipeline.run(DoseSpec(recipe=recipe, problems=pico_profile.problems, split="test", n=5), context, StopAtOnce())
    assert {subject: len(ids) for subject, ids in left_out(spec, context).items()} == dict.fromkeys(spec.subjects, 5)


def test_configurations_are_counted_by_what_answered_these_problems(pico_profile: Profile, context: Context) -> None:
    first, second = (BenchArm(name="recipe", recipe=recipe_of(pico_profile, {layer: 1.0})) for layer in (1, 2))
    assert judged(bench_of(pico_profile), context).configurations_tried == 0, "the base is no configuration"
    assert judged(bench_of(pico_profile, first), context).configurations_tried == 1
    assert judged(bench_of(pico_profile, first), context).configurations_tried == 1, "the same one again"
    assert judged(bench_of(pico_profile, second), context).configurations_tried == 2
    longer = judged(bench_of(pico_profile, first, max_new_tokens=5), context)
    assert longer.configurations_tried == 3, "other decoding is another try"
    more = judged(bench_of(pico_profile, second, n=6), context)
    assert more.configurations_tried == 3, "a larger sample contains problems that the others answered"
    seen = {item.problem_id for item in longer.items}
    fresh = {item.problem_id for item in more.items} - seen
    assert configurations_tried(context.store.database, fresh) == (1, 0)
    dev = judged(bench_of(pico_profile, first, split="dev"), context)
    assert dev.configurations_tried == 1, "other problems, another count"


def test_the_store_takes_any_number_of_problems(tmp_path: Path) -> None:
    store, ids = RunStore(tmp_path), [f"{number:016x}" for number in range(1300)]
    put_tuned_on(store.database, "m", "bench", ids[100:1200])
    put_tuned_on(store.database, "m", "bench", ids[100:1200])
    assert tuned_on(store.database, "m", ids) == (set(ids[100:1200]), 0)
    assert tuned_on(store.database, "m", ids[:100]).problem_ids == frozenset()
    assert tuned_on(store.database, "m", []).problem_ids == frozenset()
    assert configurations_tried(store.database, ids) == (0, 0)
