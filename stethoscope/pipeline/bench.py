"""Use case: is the edit better? The same seeded problems in every arm, greedy answers, graded, compared in pairs.

Problems run in seeded random blocks. Each finished block is graded and stored at once under the arm's evaluation
id, so a cancelled or crashed run loses at most one block, a later run with the same arm and settings generates only
what is missing, and the base is answered once for all recipes.
"""

import random
from collections.abc import Sequence

from stethoscope.delta.certificate import certified
from stethoscope.delta.patch import Patch
from stethoscope.errors import Cancelled
from stethoscope.minerva.comparison import arm_rows, compare
from stethoscope.minerva.problems import Problem, load_problems, load_shots, sample_problems
from stethoscope.minerva.prompts import few_shot_prompt
from stethoscope.model.generation import generate_greedy
from stethoscope.model.session import ModelSession
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


def _answer_block(
    session: ModelSession, block: Sequence[Problem], arm: str, spec: BenchSpec, context: Context, progress: Progress
) -> list[BenchItem]:
    shots = load_shots(spec.problems.shots)
    generations = generate_greedy(
        session,
        [few_shot_prompt(problem.problem, shots) for problem in block],
        max_new_tokens=spec.max_new_tokens,
        batch_size=spec.batch_size,
        progress=_Uncounted(progress),
    )
    grades = context.graders.grade(
        [(generation.text, problem.answer) for generation, problem in zip(generations, block, strict=True)]
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
        )
        for problem, generation, grade in zip(block, generations, grades, strict=True)
    ]


class _Uncounted(Progress):
    """Passes cancel checks on while the block's own steps stay out of the item count."""

    def __init__(self, outer: Progress) -> None:
        super().__init__()
        self._outer = outer

    def check_cancel(self) -> None:
        self._outer.check_cancel()


def _run_arm(
    arm: BenchArm,
    patch: Patch | None,
    problems: Sequence[Problem],
    spec: BenchSpec,
    context: Context,
    progress: Progress,
) -> tuple[list[BenchItem], Certificate | None, bool]:
    session = context.session(spec.model, progress)
    evaluation = evaluation_id(spec, arm.recipe, context)
    stored = context.store.get_items(evaluation)
    items = [
        stored[problem.problem_id].model_copy(update={"arm": arm.name})
        for problem in problems
        if problem.problem_id in stored
    ]
    missing = [problem for problem in problems if problem.problem_id not in stored]
    progress.advance(len(items))
    if not missing:
        return items, None, True
    complete = True
    with certified(session, patch) as certifying:
        try:
            for start in range(0, len(missing), spec.batch_size):
                progress.check_cancel()
                block = missing[start : start + spec.batch_size]
                answered = _answer_block(session, block, arm.name, spec, context, progress)
                context.store.put_items(evaluation, answered)
                items.extend(answered)
                progress.advance(len(answered))
        except Cancelled:
            complete = False
    return items, certifying.certificate, complete


def run(spec: BenchSpec, context: Context, progress: Progress) -> BenchResult:
    """Answer, grade and compare; a cancelled run returns what is finished, with `complete` False."""
    problems = bench_problems(spec)
    patches = {
        arm.name: patch_of(arm.recipe, context, progress) if arm.recipe is not None else None for arm in spec.arms
    }
    progress.start("Answering problems", len(problems) * len(spec.arms))
    items: dict[str, list[BenchItem]] = {}
    certificates: dict[str, Certificate] = {}
    complete = True
    for arm in spec.arms:
        answered, certificate, complete = _run_arm(arm, patches[arm.name], problems, spec, context, progress)
        items[arm.name] = answered
        if certificate is not None:
            certificates[arm.name] = certificate
        if not complete:
            break
    recipe_ids = {arm.name: content_id(arm.recipe) if arm.recipe is not None else None for arm in spec.arms}
    rows = tuple(row for name in items for row in arm_rows(items[name], recipe_ids[name], spec.subjects))
    comparisons, totals = compare(items, spec.arms[0].name, margin=spec.margin, seed=spec.seed, subjects=spec.subjects)
    return BenchResult(
        arms=rows,
        comparisons=tuple(comparisons),
        totals=tuple(totals),
        items=tuple(item for name in items for item in items[name]),
        certificates=certificates,
        complete=complete,
    )
