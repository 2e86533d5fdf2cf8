"""Answers of a benchmark's arms, block by block: taken from the store, or generated, graded and stored.

An answer belongs to its evaluation (weights, decoding) and the tokens of its prompt, not to a run: answers stored by
any run are reused, regardless of its arms and sample. A block is stored completely or not at all, with a certificate of
the weights. If the store cannot be written, the block is stored later. Answers of weights that fail their certificate
are never stored. The common prefix of the prompts is computed once for each set of weights and kept across blocks.
"""

import time
from collections.abc import Sequence
from functools import cached_property

from stethoscope.delta.certificate import certified
from stethoscope.delta.patch import Patch
from stethoscope.errors import GenerationError, StethoscopeError
from stethoscope.minerva.grading import BATCH_ANSWERS, Answer
from stethoscope.minerva.problems import Problem
from stethoscope.minerva.prompts import STOP_STRING
from stethoscope.minerva.repetition import is_repetitive
from stethoscope.model.generation import Generation, generate_greedy
from stethoscope.model.prefix import Prefix, share_prefix
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.editing import patch_of
from stethoscope.progress import Progress, SubProgress
from stethoscope.records import BenchArm, BenchSpec, EditRecipe, Grade
from stethoscope.results import BenchItem, Certificate
from stethoscope.store.items import StoredItem

PREFIX_BYTES = 2**30  # keys and values kept across blocks, for all arms together


def evaluation_id(spec: BenchSpec, recipe: EditRecipe | None, context: Context) -> str:
    """Return the id under which an arm's answers are stored: weights, prompts, decoding and device, not the sample."""
    neutral = spec.model_copy(
        update={
            "arms": (BenchArm(name="arm", recipe=recipe),),
            "subjects": (),
            "n": 1,
            "block_size": 1,
            "margin": 0.03,
            "seed": 0,
        }
    )
    assert context.loaded is not None, "the device is known when the model is loaded"
    return context.identity(neutral, context.loaded.device.type)


class Answering:
    """Answers the blocks of one benchmark and counts every answer on `progress`; stored answers count as skipped.

    Attributes:
        n_generated, elapsed_s: number of answers that were not in the store, and the seconds needed to generate, grade
            and store them.
    """

    def __init__(self, spec: BenchSpec, problems: Sequence[Problem], context: Context, progress: Progress) -> None:
        self._spec = spec
        self._context = context
        self._progress = progress
        self._loaded = context.load(spec.model, progress)
        self._evaluations = {arm.name: evaluation_id(spec, arm.recipe, context) for arm in spec.arms}
        self._prefixes: dict[str, Prefix] = {}
        self.n_generated, self.elapsed_s = 0, 0.0
        progress.start("Answering problems", len(problems) * len(spec.arms))
        self._prompts = context.prompts(spec, problems)
        asked = {(problem_id, prompt.prompt_id) for problem_id, prompt in self._prompts.items()}
        self._counted = {
            name: {problem_id for problem_id, _ in asked & context.store.stored_answers(evaluation)}
            for name, evaluation in self._evaluations.items()
        }
        for ids in self._counted.values():
            progress.skip(sum(problem.problem_id in ids for problem in problems))

    def answer(self, arm: BenchArm, block: Sequence[Problem]) -> list[StoredItem]:
        """Return the arm's graded answers to `block` in order; new answers are stored.

        Raises:
            Cancelled: stopped; no new answers of the block are stored.
            StethoscopeError: the weights were not as expected; nothing is stored.
            ResourceError: no grader process can be started.
            GenerationError: the arm's predictions are not finite.
        """
        ids = [problem.problem_id for problem in block]
        evaluation = self._evaluations[arm.name]
        prompts = {problem_id: self._prompts[problem_id].prompt_id for problem_id in ids}
        store, backlog = self._context.store, self._context.backlog
        nothing: dict[str, StoredItem] = {}
        found = backlog.read(lambda: store.get_items(evaluation, prompts, skip_damaged=True), nothing)
        counted = self._counted[arm.name]
        self._progress.skip(sum(i in found for i in ids) - sum(i in counted for i in ids))
        missing = [problem for problem in block if problem.problem_id not in found]
        if missing:
            begun = time.monotonic()
            generations, certificate = self._generate(arm, missing)
            items = self._graded(arm, missing, generations)
            backlog.write(lambda: store.put_items(evaluation, items, certificate), self._progress)
            found |= {item.problem_id: StoredItem(item, certificate) for item in items}
            self.n_generated += len(items)
            self.elapsed_s += time.monotonic() - begun
        return [
            StoredItem(
                found[p.problem_id].item.model_copy(update={"arm": arm.name, "subject": p.subject}),
                found[p.problem_id].certificate,
            )
            for p in block
        ]

    def _generate(self, arm: BenchArm, problems: Sequence[Problem]) -> tuple[list[Generation], Certificate]:
        recipe, aside = arm.recipe, SubProgress(self._progress)  # built again if the context had no room for it
        patch = Patch(None, {}) if recipe is None else patch_of(recipe, self._context, aside)
        with certified(self._loaded, patch) as certifying:
            try:
                generations = generate_greedy(
                    self._loaded,
                    [self._prompts[problem.problem_id].token_ids.tolist() for problem in problems],
                    max_new_tokens=self._spec.max_new_tokens,
                    stop=STOP_STRING,
                    batch_size=self._spec.batch_size,
                    prefix=self._prefix(arm),
                    progress=self._progress,
                )
            except GenerationError as error:
                what = f"arm {arm.name}: {error.what}"
                raise GenerationError(
                    what, got=error.got, expected=error.expected, next_step=error.next_step
                ) from error
        certificate = certifying.certificate
        if not certificate.base_intact:
            raise StethoscopeError(
                "the model's weights have changed since they were loaded; restart to load them again"
            )
        if not certificate.as_recomputed:
            raise StethoscopeError(f"arm {arm.name}: recomputing the edited weights gives different values")
        return generations, certificate

    def _prefix(self, arm: BenchArm) -> Prefix:
        """Return the computed common prefix of all prompts for the current weights, reusing a cached one."""
        kept = self._prefixes.pop(arm.name, None)
        if kept is None or kept.weights_version != self._loaded.weights_version:
            self._progress.yield_to_interactive()
            kept = share_prefix(self._loaded, self._outermost)
        if sum(prefix.size_bytes for prefix in self._prefixes.values()) + kept.size_bytes <= PREFIX_BYTES:
            self._prefixes[arm.name] = kept
        return kept

    @cached_property
    def _outermost(self) -> list[list[int]]:
        """The first, the last (in token order) and the shortest prompt; their common prefix is that of all prompts."""
        rows = {prompt.prompt_id: prompt.token_ids for prompt in self._prompts.values()}

        def place(prompt_id: str) -> bytes:
            return rows[prompt_id].astype(">i4").tobytes()

        chosen = {min(rows, key=place), max(rows, key=place), min(rows, key=lambda prompt_id: len(rows[prompt_id]))}
        return [rows[prompt_id].tolist() for prompt_id in sorted(chosen)]

    def _graded(self, arm: BenchArm, problems: Sequence[Problem], generations: Sequence[Generation]) -> list[BenchItem]:
        answers = [
            Answer(generation.text, problem.solution, problem.answer)
            for generation, problem in zip(generations, problems, strict=True)
        ]
        return [
            BenchItem(
                arm=arm.name,
                subject=problem.subject,
                problem_id=problem.problem_id,
                prompt_id=self._prompts[problem.problem_id].prompt_id,
                problem=problem.problem,
                gold=problem.answer,
                completion=generation.text,
                n_tokens=generation.n_tokens,
                truncated=generation.truncated,
                grade=grade,
                repetitive=is_repetitive(generation.text),
                token_ids=generation.token_ids,
            )
            for problem, generation, grade in zip(problems, generations, self._grade(answers), strict=True)
        ]

    def _grade(self, answers: Sequence[Answer]) -> list[Grade]:
        """Grade in batches with the base restored, so that waiting jobs can use the model in between."""
        graders = self._context.graders
        at_once = BATCH_ANSWERS * graders.n_workers
        grades: list[Grade] = []
        for start in range(0, len(answers), at_once):
            self._progress.yield_to_interactive()
            grades.extend(graders.grade(answers[start : start + at_once]))
        return grades
