"""The benchmark: fixed blocks, looks only at completed blocks, and stops that lose and mix nothing."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from stethoscope import pipeline
from stethoscope.errors import Cancelled, StethoscopeError
from stethoscope.judging import arms
from stethoscope.minerva.problems import Problem
from stethoscope.model.generation import Generation
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.pipeline import answering
from stethoscope.pipeline.answering import evaluation_id
from stethoscope.pipeline.bench import bench_problems, blocks_of, diverges_at, worth_a_look
from stethoscope.pipeline.context import Context
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import BenchArm, BenchPlanSpec, BenchSpec, EditRecipe, ProjectedEdit
from stethoscope.results import BenchItem, BenchPlanResult, BenchResult, Certificate
from stethoscope.store.runs import RunStore

STAGE = "Answering problems"


def recipe_of(profile: Profile, layers: dict[int, float], **fields: object) -> EditRecipe:
    return EditRecipe(model=profile.model, task_vector=profile.task_vector(), layers=layers, **fields)


def arm_of(profile: Profile, name: str, *layers: int) -> BenchArm:
    return BenchArm(name=name, recipe=recipe_of(profile, dict.fromkeys(layers, 1.0)))


def bench_of(profile: Profile, *chosen: BenchArm, **fields: object) -> BenchSpec:
    """Two subjects of 4 problems in blocks of 3, 3 and 2."""
    defaults = {
        "subjects": profile.problems.subjects,
        "n": 4,
        "max_new_tokens": 6,
        "batch_size": 4,
        "block_size": 3,
    }
    return BenchSpec(model=profile.model, problems=profile.problems, arms=(arms.BASE, *chosen), **(defaults | fields))


class Watched(Progress):
    """Records published results; pauses or cancels when `items` are answered."""

    def __init__(self, items: int | None = None, *, for_now: bool = False) -> None:
        super().__init__()
        self.items = items
        self.for_now = for_now
        self.published: list[BenchResult] = []

    def publish(self, result: object) -> None:
        assert isinstance(result, BenchResult)
        self.published.append(result)

    def advance(self, items: int = 1) -> None:
        super().advance(items)
        if self.items is not None and self.stage == STAGE and self.worked >= self.items:
            if self.for_now:
                self.pause()
            else:
                self.cancel()

    @property
    def worked(self) -> int:
        """Number of generated answers."""
        return self.done - self._skipped


def run(spec: BenchSpec, context: Context, progress: Progress | None = None) -> BenchResult:
    result = pipeline.run(spec, context, progress or Progress()).result
    assert isinstance(result, BenchResult)
    return result


def alone(spec: BenchSpec, folder: Path) -> BenchResult:
    """Run `spec` on an empty store."""
    context = Context(RunStore(folder), device="cpu")
    try:
        return run(spec, context)
    finally:
        context.close()


def ids_of(items: Sequence[BenchItem] | Sequence[Problem]) -> list[str]:
    return [item.problem_id for item in items]


def stored(context: Context, spec: BenchSpec, arm: BenchArm) -> set[str]:
    return {problem_id for problem_id, _ in context.store.stored_answers(evaluation_id(spec, arm.recipe, context))}


def spy_on_generation(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Record the prompts of every call that generates, in order."""
    calls: list[list[str]] = []
    real = answering.generate_greedy

    def generate(loaded: object, prompts: list[list[int]], **options: object) -> list[Generation]:
        calls.append([loaded.decode(prompt) for prompt in prompts])  # type: ignore[attr-defined]
        return real(loaded, prompts, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("stethoscope.pipeline.answering.generate_greedy", generate)
    return calls


def test_arms_are_paired_and_the_base_is_reused(
    pico_profile: Profile, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = bench_of(pico_profile, arm_of(pico_profile, "recipe", 1))
    result = run(spec, context)
    assert (result.complete, result.blocks_done, result.blocks_total) == (True, 3, 3)
    ids = {arm: [item.problem_id for item in result.items if item.arm == arm] for arm in ("base", "recipe")}
    assert ids["base"] == ids["recipe"] == ids_of(bench_problems(spec))
    for row in result.comparisons:
        assert row.n11 + row.n10 + row.n01 + row.n00 == 4
    assert result.certificates["base"].touched == ()
    assert result.certificates["recipe"].layers_edited == (1,)
    assert all(certificate.verified for certificate in result.certificates.values())
    calls = spy_on_generation(monkeypatch)
    again = run(spec.model_copy(update={"margin": 0.05}), context)
    assert again.items == result.items
    assert again.certificates == result.certificates
    other = arm_of(pico_profile, "other", 2)
    run(spec.model_copy(update={"arms": (BenchArm(name="untouched"), other), "block_size": 5}), context)
    assert [len(call) for call in calls] == [5, 3], "only the new arm is answered, whatever the blocks and names are"
    run(bench_of(pico_profile, n=6), context)
    assert sum(len(call) for call in calls[2:]) == 2 * 2, "of a larger n, what the smaller one did not have"


def test_answers_are_found_again_under_what_decides_them_and_nothing_else(
    pico_profile: Profile, context: Context, tmp_path: Path
) -> None:
    spec = bench_of(pico_profile, arm_of(pico_profile, "recipe", 1))
    context.load(spec.model, Progress())
    own = evaluation_id(spec, None, context)
    shots = Path(shutil.copy(spec.problems.shots, tmp_path / "shots.json"))
    shots.write_text(shots.read_text().replace("Problem", "Question") + "\n")
    elsewhere = spec.problems.model_copy(update={"shots": str(shots)})
    decide = {"max_new_tokens": 7, "chat_template": True, "split": "dev", "problems": elsewhere, "batch_size": 5}
    for name, value in decide.items():
        assert evaluation_id(spec.model_copy(update={name: value}), None, context) != own, name
    assert evaluation_id(spec, spec.arms[1].recipe, context) != own
    loaded = context.load(spec.model, Progress())
    with pytest.MonkeyPatch.context() as elsewhere_computed:
        elsewhere_computed.setattr(loaded, "device", torch.device("meta"))
        assert evaluation_id(spec, None, context) != own, "another device rounds otherwise"
    mine = Path(shutil.copytree(spec.problems.problems, tmp_path / "problems"))
    tuned = Path(shutil.copytree(pico_profile.task_vector().tuned, tmp_path / "tuned"))
    vector = pico_profile.task_vector().model_copy(update={"tuned": str(tuned)})
    recipe = recipe_of(pico_profile, {1: 1.0}).model_copy(update={"task_vector": vector})
    local = spec.problems.model_copy(update={"problems": str(mine), "shots": str(shots)})
    at_these_places = spec.model_copy(update={"problems": local})
    for changed in (shots, mine / "test.jsonl", tuned / "model.safetensors"):
        before = evaluation_id(at_these_places, recipe, context)
        assert evaluation_id(at_these_places, recipe, context) == before
        changed.write_bytes(changed.read_bytes() + b"\n")
        assert evaluation_id(at_these_places, recipe, context) != before, f"{changed.name} holds something else now"
    same = {"n": 9, "seed": 5, "margin": 0.1, "block_size": 1, "subjects": ("geometry",), "arms": spec.arms[:1]}
    for name, value in same.items():
        assert evaluation_id(spec.model_copy(update={name: value}), None, context) == own, name


def test_blocks_have_the_same_members_in_every_arm_whatever_is_stored(
    pico_profile: Profile, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = bench_of(pico_profile, arm_of(pico_profile, "one", 1), arm_of(pico_profile, "two", 2))
    problems = bench_problems(spec)
    assert ids_of(problems) == ids_of(bench_problems(spec.model_copy(update={"arms": spec.arms[:1], "block_size": 1})))
    assert ids_of(problems) != ids_of(bench_problems(spec.model_copy(update={"seed": 1})))
    blocks = blocks_of(problems, spec.block_size)
    assert [len(block) for block in blocks] == [3, 3, 2]
    run(spec.model_copy(update={"arms": spec.arms[1:2]}), context, Watched(4))  # "one" has answered the first block
    calls = spy_on_generation(monkeypatch)
    run(spec, context)
    expected = [0, 0, 1, 1, 1, 2, 2, 2]  # block by block, arm by arm, but for "one" in the first
    assert [len(call) for call in calls] == [len(blocks[number]) for number in expected]
    for call, number in zip(calls, expected, strict=True):
        for prompt, problem in zip(call, blocks[number], strict=True):
            assert prompt.endswith(f"Problem:\n{problem.problem}\n\nSolution:")


def test_a_larger_sample_contains_the_smaller(pico_profile: Profile) -> None:
    small, large = bench_of(pico_profile, n=3), bench_of(pico_profile, n=10)
    assert set(ids_of(bench_problems(small))) < set(ids_of(bench_problems(large)))


def test_blocks_mix_the_subjects_and_both_sample_and_order_follow_the_seed(pico_profile: Profile) -> None:
    spec = bench_of(pico_profile, n=12)
    first, second = (bench_problems(spec.model_copy(update={"seed": seed})) for seed in (0, 1))
    for problems in (first, second):
        for block in blocks_of(problems, 8)[:-1]:
            assert len({problem.subject for problem in block}) == 2, "a look at some blocks would be of one subject"
    assert set(ids_of(first)) != set(ids_of(second))
    whole = [ids_of(bench_problems(spec.model_copy(update={"n": 24, "seed": seed}))) for seed in (0, 1, 0)]
    assert set(whole[0]) == set(whole[1])
    assert whole[0] != whole[1]
    assert whole[0] == whole[2]


def test_a_look_shows_completed_blocks_of_all_arms_and_nothing_else(pico_profile: Profile, context: Context) -> None:
    spec = bench_of(pico_profile, arm_of(pico_profile, "one", 1), arm_of(pico_profile, "two", 2))
    order = ids_of(bench_problems(spec))
    progress = Watched()
    final = run(spec, context, progress)
    assert [(look.blocks_done, look.blocks_total) for look in progress.published] == [(1, 3), (2, 3)]
    for look in progress.published:
        assert not look.complete
        assert look.no_verdict is not None
        for arm in ("base", "one", "two"):
            assert [item.problem_id for item in look.items if item.arm == arm] == order[: 3 * look.blocks_done]
        assert {row.n for row in look.totals} == {3 * look.blocks_done}
        assert set(look.items) <= set(final.items)
        assert look.certificates == final.certificates
    assert (progress.done, progress.total) == (24, 24)


def test_looks_cost_no_more_than_a_few_final_counts() -> None:
    looks = [done for done in range(1, 2_001) if worth_a_look(done)]
    assert looks[:18] == [*range(1, 17), 18, 20]
    assert all(later <= earlier * 9 / 8 for earlier, later in zip(looks[7:], looks[8:], strict=False))
    assert sum(looks) < 10 * looks[-1], "each look counts all answers so far"


@pytest.mark.parametrize("answered", [1, 3, 4, 9, 10, 18, 23])
def test_a_stop_anywhere_keeps_whole_blocks_and_the_resume_gives_the_same_result(
    pico_profile: Profile, context: Context, tmp_path_factory: pytest.TempPathFactory, answered: int
) -> None:
    chosen = arm_of(pico_profile, "one", 1), arm_of(pico_profile, "two", 2)
    spec = bench_of(pico_profile, *chosen, batch_size=1, max_new_tokens=2)
    blocks = [set(ids_of(block)) for block in blocks_of(bench_problems(spec), spec.block_size)]
    try:
        outcome = pipeline.run(spec, context, Watched(answered, for_now=bool(answered % 2)))
    except Cancelled:
        assert answered <= 9
    else:
        assert isinstance(outcome.result, BenchResult)
        assert outcome.state == ("paused" if answered % 2 else "cancelled")
        done = outcome.result.blocks_done
        assert done == (1 if answered <= 18 else 2)
        for arm in spec.arms:
            kept = {item.problem_id for item in outcome.result.items if item.arm == arm.name}
            assert kept == set().union(*blocks[:done])
    context.load(spec.model, Progress())
    before = 0
    for arm in spec.arms:
        for block in blocks:
            assert block & stored(context, spec, arm) in (set(), block), "half a block is stored"
        before += len(stored(context, spec, arm))
    assert answered - 3 <= before <= answered, "more than a block of an arm is lost"
    progress = Watched()
    resumed = run(spec, context, progress)
    assert progress.worked == 24 - before
    assert (progress.done, progress.total) == (24, 24)
    assert resumed == _uninterrupted(spec, tmp_path_factory)
    states = [record.state for record in context.store.list_runs()]
    assert states == (["done"] if answered % 2 else ["done", "cancelled"]), "a paused run goes on under its id"


_REFERENCES: dict[str, BenchResult] = {}


def _uninterrupted(spec: BenchSpec, folders: pytest.TempPathFactory) -> BenchResult:
    key = spec.model_dump_json()
    if key not in _REFERENCES:
        _REFERENCES[key] = alone(spec, folders.mktemp("uninterrupted"))
    return _REFERENCES[key]


def test_a_damaged_answer_is_given_again_and_counted_once(pico_profile: Profile, context: Context) -> None:
    import sqlite3

    spec = bench_of(pico_profile, arm_of(pico_profile, "one", 1))
    first = run(spec, context)
    with sqlite3.connect(context.store.root / "runs.sqlite3") as opened:
        opened.execute("UPDATE items SET body = replace(body, 'prime', 'crime') WHERE rowid % 5 = 0")
    opened.close()
    progress = Watched()
    assert run(spec, context, progress) == first
    assert progress.worked == 3
    assert (progress.done, progress.total) == (16, 16)


def test_two_arms_of_the_same_recipe_are_answered_once(pico_profile: Profile, context: Context) -> None:
    spec = bench_of(pico_profile, arm_of(pico_profile, "one", 1), arm_of(pico_profile, "the same", 1))
    progress = Watched()
    result = run(spec, context, progress)
    assert progress.worked == 16
    assert (progress.done, progress.total) == (24, 24)
    by_arm = {arm.name: [item.completion for item in result.items if item.arm == arm.name] for arm in spec.arms}
    assert by_arm["one"] == by_arm["the same"] != by_arm["base"]


def test_no_verdict_and_no_answer_of_weights_that_changed_while_answering(
    pico_profile: Profile, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = bench_of(pico_profile)
    loaded = context.load(pico_profile.model, Progress())
    real = answering.generate_greedy

    def write_into_the_base(*args: object, **kwargs: object) -> object:
        loaded.parameter("model.norm.weight").data[0] += 1
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("stethoscope.pipeline.answering.generate_greedy", write_into_the_base)
    with pytest.raises(StethoscopeError, match="have changed since they were loaded"):
        pipeline.run(spec, context, Progress())
    assert context.store.list_runs()[0].state == "failed"
    assert stored(context, spec, arms.BASE) == set()


def test_a_base_that_changed_where_no_edit_was_gives_no_verdict(pico_profile: Profile, context: Context) -> None:
    """The base's answers are in the store, and the arm's certificate covers the edited layer alone."""
    run(bench_of(pico_profile), context)
    context.load(pico_profile.model, Progress()).parameter("model.norm.weight").data[0] += 1
    with pytest.raises(StethoscopeError, match="have changed since they were loaded"):
        run(bench_of(pico_profile, arm_of(pico_profile, "one", 1)), context)
    assert context.store.list_runs()[0].state == "failed"


def test_n_above_a_subjects_size_takes_what_there_is_and_says_so(pico_profile: Profile, context: Context) -> None:
    spec = bench_of(pico_profile, subjects=("geometry", "stories"), n=25, max_new_tokens=1)
    result = run(spec, context)
    assert {(row.subject, row.n) for row in result.arms} == {("geometry", 24), ("stories", 24)}
    assert result.shortage == "Geometry has only 24, stories has only 24 test problems; all of them are used."


def test_the_record_of_several_passes_is_verified_only_where_all_agree() -> None:
    fields = {
        "recipe_id": "r",
        "base_checksum": "b",
        "restored_checksum": "b",
        "touched": ("w",),
        "layers_edited": (1,),
    }
    good = Certificate(**fields, edited_checksum="e")
    rounded = Certificate(**fields, edited_checksum="f")
    broken = Certificate(**(fields | {"restored_checksum": "x"}), edited_checksum="e")
    assert Certificate.of_passes([good, good]) == good
    assert good.verified
    for passes in ([good, broken], [broken, good], [good, rounded], [rounded, good]):
        merged = Certificate.of_passes(passes)
        assert not merged.verified
        assert "differ" in merged.evidence


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_the_certificate_covers_every_block(
    pico_profile: Profile, context: Context, monkeypatch: pytest.MonkeyPatch, odd: int
) -> None:
    """One block is answered with different edited weights, as a bug in rebuilding a patch would cause."""
    recipes = [recipe_of(pico_profile, {1: alpha}) for alpha in (1.0, 0.5)]
    spec = bench_of(pico_profile, BenchArm(name="recipe", recipe=recipes[0]))
    real, calls = answering.patch_of, []

    def patch_of(recipe: EditRecipe, *rest: object) -> object:
        calls.append(recipe)
        return real(recipes[len(calls) == odd + 1], *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("stethoscope.pipeline.answering.patch_of", patch_of)
    result = run(spec, context)
    assert len(calls) == 3
    assert result.certificates["base"].verified
    assert not result.certificates["recipe"].verified
    again = run(spec, context)
    assert not again.certificates["recipe"].verified, "what is found in the store keeps its certificate"
    assert run(bench_of(pico_profile, n=1), context).certificates.keys() == {"base"}


def test_where_answers_part(pico_profile: Profile, context: Context) -> None:
    spec = bench_of(pico_profile, arm_of(pico_profile, "one", 0, 1, 2, 3), arm_of(pico_profile, "none"))
    result = run(spec, context)
    loaded = context.load(spec.model, Progress())
    base = {item.problem_id: item for item in result.items if item.arm == "base"}
    prompts = {problem_id: item.prompt_id for problem_id, item in base.items()}
    tokens = {
        (arm.name, problem_id): found.item.token_ids
        for arm in spec.arms
        for problem_id, found in context.store.get_items(evaluation_id(spec, arm.recipe, context), prompts).items()
    }
    parted = 0
    for item in result.items:
        assert item.token_ids == ()
        ours, theirs = tokens[item.arm, item.problem_id], tokens["base", item.problem_id]
        assert ours, "the store keeps the tokens"
        assert (item.diverges_at is None) == (ours == theirs)
        if item.diverges_at is not None:
            parted += 1
            assert item.completion[: item.diverges_at] == base[item.problem_id].completion[: item.diverges_at]
            common = next(i for i, (a, b) in enumerate(zip((*ours, -1), (*theirs, -2), strict=False)) if a != b)
            assert item.completion[item.diverges_at :].startswith(loaded.decode(ours[common:])[:1].strip("\ufffd"))
    assert 0 < parted <= 8, "the edit changes no text"
    assert all(item.diverges_at is None for item in result.items if item.arm == "none")


def test_where_answers_part_inside_a_character_and_at_an_end(pico_profile: Profile, context: Context) -> None:
    loaded = context.load(pico_profile.model, Progress())

    def item(text: str, cut: int | None = None) -> BenchItem:
        ids = tuple(loaded.encode([text], add_bos=False)[0][:cut])
        return BenchItem.model_construct(completion=loaded.decode(ids), token_ids=ids)

    whole, accent = item(" the aé river"), item(" the aè river")
    assert diverges_at(loaded, whole, whole) is None
    assert diverges_at(loaded, accent, whole) == len(" the a")  # é and è share their first byte
    assert diverges_at(loaded, item(" the"), whole) == len(" the")
    assert diverges_at(loaded, whole, item(" the")) == len(" the")
    assert diverges_at(loaded, item(""), whole) == 0


def test_many_arms_share_little_memory_and_are_built_again_right(
    pico_profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [arm_of(pico_profile, f"layer {layer}", layer) for layer in range(2)]
    diagnosis = pico_profile.diagnose_spec(n_bootstrap=20, n_permutations=20)
    filtered = ProjectedEdit(
        diagnosis=diagnosis, subject="geometry", top_k=2
    )  # its patch reads SAEs, a stage of its own
    chosen.append(BenchArm(name="projected", recipe=recipe_of(pico_profile, {1: 1.0, 2: 1.0}, edit_type=filtered)))
    spec = bench_of(pico_profile, *chosen, max_new_tokens=3)
    expected = alone(spec, tmp_path / "roomy")
    built: Counter[str] = Counter()
    from stethoscope.pipeline import editing

    real = editing.build_patch

    def build_patch(*args: object, **options: object) -> object:
        built[str(args[4])] += 1
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("stethoscope.pipeline.editing.build_patch", build_patch)
    context = Context(RunStore(tmp_path / "tight"), device="cpu", edit_bytes=2)
    progress = Watched()
    assert run(spec, context, progress) == expected
    context.close()
    assert set(built.values()) == {4}, "the patches were kept: the check shows nothing"
    assert (progress.stage, progress.done, progress.total) == (STAGE, 32, 32)


@pytest.mark.parametrize("kept", [True, False])
def test_the_common_beginning_is_computed_once_for_each_set_of_weights(
    pico_profile: Profile,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    kept: bool,
) -> None:
    chosen = arm_of(pico_profile, "one", 1), arm_of(pico_profile, "two", 2)
    spec = bench_of(pico_profile, *chosen, max_new_tokens=2)
    expected = _uninterrupted(spec, tmp_path_factory)
    real, made = answering.share_prefix, []

    def share_prefix(*args: object) -> object:
        made.append(real(*args))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr("stethoscope.pipeline.answering.share_prefix", share_prefix)
    if not kept:
        monkeypatch.setattr("stethoscope.pipeline.answering.PREFIX_BYTES", 0)
    assert alone(spec, tmp_path / "counted") == expected
    assert len(made) == (3 if kept else 9)
    assert all(prefix.length >= 8 for prefix in made), "nothing is shared: the check shows nothing"


def test_answers_end_at_the_stop_string_and_at_the_limit_asked_for(
    pico_profile: Profile, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object]] = []
    real = answering.generate_greedy

    def generate(*args: object, **options: object) -> list[Generation]:
        asked.append(options)
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("stethoscope.pipeline.answering.generate_greedy", generate)
    run(bench_of(pico_profile, n=1, max_new_tokens=3, batch_size=7), context)
    (options,) = asked
    assert (options["stop"], options["max_new_tokens"], options["batch_size"]) == ("Problem:", 3, 7)


def test_the_chat_template_holds_problem_and_shots_with_one_bos(
    pico_profile: Profile,
    context: Context,
    make_pico: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = make_pico()
    template = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[model]"
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    model = pico_profile.model.model_copy(update={"id": str(folder)})
    plain = bench_of(pico_profile, n=1).model_copy(update={"model": model})
    chat = plain.model_copy(update={"chat_template": True})
    loaded = context.load(model, Progress())
    assert evaluation_id(plain, None, context) != evaluation_id(chat, None, context)
    calls: list[list[list[int]]] = []
    real = answering.generate_greedy

    def generate(loaded: object, prompts: list[list[int]], **options: object) -> list[Generation]:
        calls.append(prompts)
        return real(loaded, prompts, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("stethoscope.pipeline.answering.generate_greedy", generate)
    run(plain, context)
    run(chat, context)
    assert len(calls) == 2
    for without, within in zip(*calls, strict=True):
        assert within[0] == without[0] == loaded.bos_id
        assert within.count(loaded.bos_id) == without.count(loaded.bos_id) == 1
        assert loaded.decode(within) == f"[user]{loaded.decode(without)}[model]"
        assert loaded.decode(without).startswith("Problem:\n1 + 7?")


def test_another_rendering_of_the_prompt_is_asked_anew(
    pico_profile: Profile, tmp_path: Path, make_pico: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_pico()
    template = "{{ bos_token }}{{ strftime_now('%d') }}[user]{{ messages[0]['content'] }}[model]"
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    model = pico_profile.model.model_copy(update={"id": str(folder)})
    base = bench_of(pico_profile, n=1).model_copy(update={"model": model, "chat_template": True})
    prompts = []
    for day in ("05", "06", "06"):
        monkeypatch.setattr(LoadedModel, "chat_prompt", lambda _, text, day=day: f"{day} {text}")
        context = Context(RunStore(tmp_path / "runs"), device="cpu")
        planned = pipeline.run(BenchPlanSpec(bench=base), context, Progress()).result
        assert isinstance(planned, BenchPlanResult)
        assert planned.first_prompt.startswith(f"<bos>{day} Problem:\n1 + 7?")
        prompts.append((planned.stored["base"], {item.prompt_id for item in run(base, context).items}))
        context.close()
    (before, yesterday), (other_day, today), (same_day, again) = prompts
    assert (before, other_day, same_day) == (0, 0, 2)
    assert today == again
    assert not today & yesterday


def test_the_result_is_json_without_tokens(pico_profile: Profile, context: Context) -> None:
    result = run(bench_of(pico_profile, arm_of(pico_profile, "one", 1)), context)
    assert BenchResult.model_validate_json(json.dumps(result.model_dump(mode="json"))) == result
