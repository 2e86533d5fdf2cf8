"""Use case: the live probe. Does the edit make gold solutions more likely, and what does it do to control text?

Mean NLL per solution token (nats) of each problem behind the same short frame, edited minus base, paired over the
problems of a fixed seeded dev sample, with a t interval. The base's values are kept, so moving a slider costs one
forward pass of the edited model.
"""

import time

import numpy as np

from stethoscope.delta.certificate import certified
from stethoscope.minerva.problems import load_problems, sample_problems
from stethoscope.minerva.prompts import frame_problem
from stethoscope.model.likelihood import solution_nll
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.editing import patch_of
from stethoscope.progress import Progress
from stethoscope.records import ProbeSpec, ProblemsRef, Split
from stethoscope.results import ProbeResult, ProbeRow
from stethoscope.statistics import paired_mean_interval
from stethoscope.store.ids import content_id

BATCH_SIZE = 32


def gold_pairs(problems: ProblemsRef, split: Split, n: int, seed: int) -> tuple[list[tuple[str, str]], list[str]]:
    """Return (prompt, solution) of n seeded items a subject and control corpus, and the subject or corpus of each."""
    pairs, subjects = [], []
    of_subjects, of_controls = load_problems(problems.problems, split), load_problems(problems.controls, split)
    for names, texts in ((problems.subjects, of_subjects), (problems.control_names, of_controls)):
        for name in names:
            for problem in sample_problems(texts, name, n, seed):
                pairs.append((frame_problem(problem.problem), problem.solution))
                subjects.append(name)
    return pairs, subjects


def run(spec: ProbeSpec, context: Context, progress: Progress) -> ProbeResult:
    """Return the paired NLL differences of every subject and control corpus."""
    started = time.perf_counter()
    recipe = spec.recipe
    session = context.session(recipe.model, progress)
    patch = patch_of(recipe, context, progress)
    pairs, subjects = gold_pairs(spec.problems, spec.split, spec.n, spec.seed)
    key = f"{context.identity(recipe.model)} {context.identity(spec.problems)} {spec.split} {spec.n} {spec.seed}"
    progress.start("Scoring gold solutions", len(pairs) * (1 if key in context.base_nll.entries else 2))
    base = context.base_nll.get_or_make(
        key, lambda: solution_nll(session, pairs, batch_size=BATCH_SIZE, progress=progress)
    )
    with certified(session, patch) as certifying:
        edited = solution_nll(session, pairs, batch_size=BATCH_SIZE, progress=progress)
    names = np.array(subjects)
    rows = []
    for name in (*spec.problems.subjects, *spec.problems.control_names):
        of_subject = names == name
        interval = paired_mean_interval(edited[of_subject] - base[of_subject])
        rows.append(
            ProbeRow(
                subject=name,
                is_control=name in spec.problems.control_names,
                n=int(of_subject.sum()),
                base_nll=float(base[of_subject].mean()),
                edited_nll=float(edited[of_subject].mean()),
                difference=interval.mean,
                ci_low=interval.low,
                ci_high=interval.high,
            )
        )
    return ProbeResult(
        recipe_id=content_id(recipe),
        rows=tuple(rows),
        certificate=certifying.certificate,
        elapsed_s=time.perf_counter() - started,
    )
