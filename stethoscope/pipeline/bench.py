"""Use case: is the edit better? The same seeded problems in every arm, greedy answers, graded, compared in pairs.

Problems run in seeded random blocks. Each finished block is graded and stored at once under the arm's evaluation
id, so a cancelled or crashed run loses at most one block, a later run with the same arm and settings generates only
what is missing, and the base is answered once for all recipes.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from stethoscope.delta.certificate import BaseCheck, certified
from stethoscope.delta.patch import Patch
from stethoscope.errors import Cancelled, StethoscopeError
from stethoscope.minerva.comparison import judge
from stethoscope.minerva.grading import Answer
from stethoscope.minerva.problems import Problem, load_problems, load_shots, sample_problems
from stethoscope.minerva.prompts import STOP_STRING, few_shot_prompt
from stethoscope.minerva.repetition import is_repetitive
from stethoscope.model.generation import Generation, generate_greedy
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.editing import patch_of
from stethoscope.progress import Progress
from stethoscope.records import BenchArm, BenchSpec, EditRecipe
from stethoscope.results import BenchItem, BenchResult, Certificate
from stethoscope.store.ids import content_id


def bench_problems(spec: BenchSpec) -> list[Problem]:
    """Return the seeded sample of every subject, in one seeded random order that all arms share."""
    chosen: list[Problem] = []
    for subject in spec.subjects:
        location = spec.problems.controls if subject in spec.problems.control_names else spec.problems.problems
        chosen.extend(sample_problems(load_problems(location, spec.split), subject, spec.n, spec.seed))
    random.Random(f"blocks-{spec.seed}").shuffle(chosen)
    return chosen


def evaluation_id(spec: BenchSpec, recipe: EditRecipe | None, context: Context) -> str:
    """Return the id under which an arm's answers are stored: weights, prompts and decoding, not the sample."""
    neutral = spec.model_copy(
        update={"arms": (BenchArm(name="arm", recipe=recipe),), "subjects": (), "n": 1, "margin": 0.03, "seed": 0}
    )
    return context.identity(neutral)


def _graded(arm: str, block: Sequence[Problem], generations: Sequence[Generation], context: Context) -> list[BenchItem]:
    grades = context.graders.grade(
        [
            Answer(generation.text, problem.solution, problem.answer)
            for generation, problem in zip(generations, block, strict=True)
        ]
    )
    return [
        BenchItem(
            arm=arm,
            subject=problem.subject,
            problem_id=problem.problem_id,
            problem=problem.problem,
            gold=problem.answer,
            completion=generation.text,
            n_tokens=generation.n_tokens,
            truncated=generation.truncated,
            grade=grade,
            repetitive=is_repetitive(generation.text),
        )
        for problem, generation, grade in zip(block, generations, grades, strict=True)
    ]


@dataclass(frozen=True)
class _Answered:
    items: list[BenchItem]
    certificate: Certificate | None
    complete: bool


def _run_arm(
    arm: BenchArm, problems: Sequence[Problem], spec: BenchSpec, context: Context, progress: Progress
) -> _Answered:
    """Return the arm's answers, generating only those that the store does not have."""
    evaluation = evaluation_id(spec, arm.recipe, context)
    stored = context.store.get_items(evaluation, skip_damaged=True)
    items = [
        stored[problem.problem_id].model_copy(update={"arm": arm.name})
        for problem in problems
        if problem.problem_id in stored
    ]
    missing = [problem for problem in problems if problem.problem_id not in stored]
    progress.skip(len(items))
    if not missing:
        return _Answered(items, context.store.get_certificate(evaluation), True)
    session = context.session(spec.model, progress)
    patch = Patch(None, {}) if arm.recipe is None else patch_of(arm.recipe, context, progress)
    shots = load_shots(spec.problems.shots)
    prompts = [few_shot_prompt(problem.problem, shots) for problem in missing]
    if spec.chat_template:
        prompts = [session.chat_prompt(prompt) for prompt in prompts]

    def keep(generations: list[Generation]) -> None:
        block = [missing[generation.index] for generation in generations]
        answered = _graded(arm.name, block, generations, context)
        context.store.put_items(evaluation, answered)
        items.extend(answered)

    complete = True
    with certified(session, patch) as certifying:
        try:
            generate_greedy(
                session,
                prompts,
                max_new_tokens=spec.max_new_tokens,
                stop=STOP_STRING,
                batch_size=spec.batch_size,
                progress=progress,
                on_batch=keep,
            )
        except Cancelled:
            complete = False
    context.store.put_certificate(evaluation, certifying.certificate)
    return _Answered(items, certifying.certificate, complete)


def _check_base(context: Context) -> None:
    """Raise unless all weights are those that were loaded: no verdict stands on answers of an unknown base."""
    assert context.loaded is not None, "the model was loaded to answer"
    if not BaseCheck(context.loaded).run():
        raise StethoscopeError("the model's weights are no longer those that were loaded; restart to load them again")


def run(spec: BenchSpec, context: Context, progress: Progress) -> BenchResult:
    """Answer, grade and compare; a cancelled run returns what is finished, with `complete` False."""
    problems = bench_problems(spec)
    context.session(spec.model, progress)
    for arm in spec.arms:  # a recipe that does not fit is told before anything is answered
        if arm.recipe is not None:
            patch_of(arm.recipe, context, progress)
    progress.start("Answering problems", len(problems) * len(spec.arms))
    items: dict[str, list[BenchItem]] = {}
    certificates: dict[str, Certificate] = {}
    complete = True
    for arm in spec.arms:
        answered = _run_arm(arm, problems, spec, context, progress)
        items[arm.name] = answered.items
        if answered.certificate is not None:
            certificates[arm.name] = answered.certificate
        complete = answered.complete
        if not complete:
            break
    _check_base(context)
    recipe_ids = {arm.name: content_id(arm.recipe) if arm.recipe is not None else None for arm in spec.arms}
    judgement = judge(spec, items, recipe_ids, complete=complete)
    return BenchResult(
        spec=spec,
        **judgement._asdict(),
        items=tuple(item for name in items for item in items[name]),
        certificates=certificates,
        complete=complete,
    )
