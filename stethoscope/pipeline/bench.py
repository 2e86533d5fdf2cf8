"""Use case: benchmark. Every arm answers the same seeded problems greedily; answers are graded and compared in pairs.

Problems used for tuning are excluded (`tuning`). The others are divided into seeded random blocks, which depend on the
problems, the seed and n, but never on the arms or answers. All arms answer a block before the next one starts
(`answering`), so that after each block all arms have answered the same problems. Interim results include only completed
blocks, because long answers finish last and would bias any other interim result. Stored answers survive a stop, a crash
and a kill; running the same spec again continues.
"""

import os
import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from stethoscope.delta.certificate import BaseCheck
from stethoscope.errors import Cancelled, CorpusError, StethoscopeError
from stethoscope.judging.comparison import judge
from stethoscope.minerva.problems import Problem, asked_problems
from stethoscope.minerva.sources import load_corpus
from stethoscope.model.loaded_model import INCOMPLETE, LoadedModel
from stethoscope.pipeline import job_memory
from stethoscope.pipeline.answering import Answering
from stethoscope.pipeline.compare_text import first_difference
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.editing import not_the_fine_tunes, patch_of, reach_of_arms
from stethoscope.pipeline.footprint import Setting
from stethoscope.pipeline.prompts import as_read
from stethoscope.pipeline.rate import note_rate
from stethoscope.pipeline.tuned_on import Seen, left_out
from stethoscope.progress import Progress
from stethoscope.records import BenchSpec
from stethoscope.results import BenchItem, BenchResult, Certificate, Reach, idle_arms
from stethoscope.store.ids import content_id
from stethoscope.store.items import StoredItem
from stethoscope.store.tuning import Tried, configurations_tried, tuned_on


def bench_problems(spec: BenchSpec, without: Mapping[str, Collection[str]] = MappingProxyType({})) -> list[Problem]:
    """Return the seeded sample of all subjects, in a seeded random order that is the same for all arms.

    If a subject has fewer than n problems, all of them are used.

    Args:
        without: ids of problems to exclude, by subject (see `tuning.left_out`).

    Raises:
        CorpusError: a subject without problems.
    """
    chosen: list[Problem] = []
    for subject in spec.subjects:
        corpus = load_corpus(spec.problems, subject, spec.split)
        every = [problem for problem in corpus if problem.subject == subject]
        if not every:
            raise CorpusError(
                "no such subject",
                got=repr(subject),
                expected="one of " + ", ".join(sorted({problem.subject for problem in corpus})),
                next_step="Leave the subject out.",
            )
        free = [problem for problem in every if problem.problem_id not in without.get(subject, ())]
        if not free:
            raise CorpusError(
                f"every {spec.split} problem of {subject} was used for tuning",
                got=f"{len(every)} problems that are in the dev or train split or were used for tuning",
                expected="problems not used for tuning",
                next_step="Use other problems, or leave the subject out.",
            )
        chosen.extend(asked_problems(free, subject, spec.n, spec.seed))
    random.Random(f"blocks-{spec.seed}").shuffle(chosen)
    return chosen


def blocks_of(problems: Sequence[Problem], size: int) -> list[Sequence[Problem]]:
    """Return `problems` in blocks of `size`; the last one can be smaller."""
    return [problems[start : start + size] for start in range(0, len(problems), size)]


@dataclass
class _Finished:
    """Answers of the completed blocks by arm, and their certificates."""

    spec: BenchSpec
    loaded: LoadedModel
    n_blocks: int
    asked: dict[str, int]
    excluded: dict[str, int]
    context: Context
    reach: dict[str, Reach]
    first_prompt: str
    not_the_fine_tune: dict[str, str]
    done: int = 0
    items: dict[str, list[BenchItem]] = field(default_factory=dict)
    certificates: dict[str, list[Certificate]] = field(default_factory=dict)

    def add(self, block: dict[str, list[StoredItem]]) -> None:
        """Add a block that every arm has answered; token ids are dropped, and the position where answers diverge is
        kept."""
        reference = block[self.spec.arms[0].name]
        for name, stored in block.items():
            items = self.items.setdefault(name, [])
            for (item, _), (other, _) in zip(stored, reference, strict=True):
                parts = {"token_ids": (), "diverges_at": diverges_at(self.loaded, item, other)}
                items.append(item.model_copy(update=parts))
            known = self.certificates.setdefault(name, [])
            known.extend(dict.fromkeys(s.certificate for s in stored if s.certificate not in known))
        self.done += 1

    def result(self, *, complete: bool) -> BenchResult:
        """Return the result of the completed blocks."""
        recipe_ids = {arm.name: content_id(arm.recipe) if arm.recipe is not None else None for arm in self.spec.arms}
        answered = {item.problem_id for items in self.items.values() for item in items}
        database, backlog = self.context.store.database, self.context.backlog
        edits = len({recipe_id for recipe_id in recipe_ids.values() if recipe_id is not None})
        tried = backlog.read(lambda: configurations_tried(database, answered), Tried(edits, 0))
        tuned = backlog.read(lambda: tuned_on(database, self.spec.model.id, answered).damaged, 0)
        certificates = {name: Certificate.of_passes(known) for name, known in self.certificates.items()}
        idle = idle_arms(self.spec, certificates)
        judgement = judge(self.spec, self.items, recipe_ids, complete=complete, idle=idle)
        return BenchResult(
            spec=self.spec,
            **judgement._asdict(),
            items=tuple(item for items in self.items.values() for item in items),
            certificates=certificates,
            complete=complete,
            blocks_done=self.done,
            blocks_total=self.n_blocks,
            asked=self.asked,
            excluded=self.excluded,
            reach=self.reach,
            first_prompt=self.first_prompt,
            not_the_fine_tune=self.not_the_fine_tune,
            configurations_tried=max(tried.configurations, edits),  # its own answers may still wait to be stored
            damaged_rows=tried.damaged + tuned,
        )


def diverges_at(loaded: LoadedModel, item: BenchItem, reference: BenchItem) -> int | None:
    """Return the position in the completion of the first token that differs from the reference's answer; None if none
    differs."""
    position = first_difference(reference.token_ids, item.token_ids)
    if position is None:
        return None
    shared = loaded.decode(item.token_ids[:position]).rstrip(INCOMPLETE)
    return len(os.path.commonprefix([shared, item.completion]))


def worth_a_look(done: int) -> bool:
    """Return whether to publish after `done` blocks: at first after every block, later after about an eighth more.

    Each interim result recounts all answers, so publishing after every block would take quadratic time.
    """
    shown = 0
    while shown < done:
        shown += max(1, shown // 8)
    return shown == done


def _check_base(context: Context) -> None:
    """Raise an error if any weight has changed since loading, because verdicts need a known base."""
    assert context.loaded is not None, "the model was loaded to answer"
    if not BaseCheck(context.loaded).run():
        raise StethoscopeError("the model's weights have changed since they were loaded; restart to load them again")


def run(spec: BenchSpec, context: Context, progress: Progress) -> BenchResult:
    """Answer, grade and compare; publish completed blocks, and return them if stopped.

    Raises:
        Cancelled: stopped before a block was completed.
    """
    without = left_out(spec, context)
    problems = bench_problems(spec, without)
    loaded = context.load(spec.model, progress)
    reach = reach_of_arms(spec.arms, context, progress)
    for arm in spec.arms:  # report an invalid recipe before generating answers
        if arm.recipe is not None:
            patch_of(arm.recipe, context, progress)
    answering = Answering(spec, problems, context, progress)
    blocks = blocks_of(problems, spec.block_size)
    finished = _Finished(
        spec,
        loaded,
        len(blocks),
        asked=dict(Counter(problem.subject for problem in problems)),
        excluded={subject: len(ids) for subject, ids in without.items()},
        context=context,
        reach=reach,
        first_prompt=as_read(loaded, context.prompts(spec, problems[:1])[problems[0].problem_id]),
        not_the_fine_tune=not_the_fine_tunes(spec.arms, context, progress, whole=True),
    )
    for number, block in enumerate(blocks, start=1):
        answered: dict[str, list[StoredItem]] = {}
        try:
            for arm in spec.arms:
                progress.detail = f"block {number} of {len(blocks)} · {arm.name}"
                answered[arm.name] = answering.answer(arm, block)
            finished.add(answered)
        except Cancelled:
            if not finished.done:
                raise
            break
        if finished.done < len(blocks) and worth_a_look(finished.done):
            progress.publish(finished.result(complete=False))
    _check_base(context)
    note_rate(spec, context, answering.n_generated, answering.elapsed_s, progress)
    return finished.result(complete=finished.done == len(blocks))


def needs(spec: BenchSpec, setting: Setting, saes_of: job_memory.SaesOf) -> Iterable[job_memory.Parts]:
    """Yield the memory of answering."""
    yield job_memory.answering(setting, spec.batch_size, spec.max_new_tokens)


def smaller(spec: BenchSpec) -> str:
    """Return a smaller setting."""
    if spec.batch_size > 1:
        return f"Set the batch size to {spec.batch_size // 2} (now {spec.batch_size})."
    return job_memory.fewer_layers(spec)


def seen(spec: BenchSpec) -> Seen | None:
    """Return the problems whose scores can be used for tuning; None on the test split, which is for verdicts only."""
    if spec.split == "test":
        return None
    return Seen(spec.model, spec.problems, spec.subjects, spec.split, spec.n, spec.seed)
