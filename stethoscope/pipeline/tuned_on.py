"""Keeps tuning and test problems apart: records which problems were seen, and which a benchmark must exclude.

A likelihood check, dose curve, rank, table of gains, diagnosis or benchmark on a tuning split shows numbers that can be
used to choose layers, alpha and k. Its problems are recorded for the model, by the hash of their text. A benchmark on
the test split excludes them, and also problems that occur in the dev or train split.
"""

from typing import NamedTuple

from stethoscope.minerva.problems import asked_problems
from stethoscope.minerva.sources import load_corpus, problem_ids
from stethoscope.pipeline.context import Context
from stethoscope.records import BenchSpec, DoseSpec, ModelRef, ProbeSpec, ProblemsRef, RankSpec, SampleSize, Split
from stethoscope.store.tuning import put_tuned_on, tuned_on


class Seen(NamedTuple):
    """A sample of problems whose numbers a use case shows."""

    model: ModelRef
    problems: ProblemsRef
    subjects: tuple[str, ...]
    split: Split
    n: SampleSize
    seed: int


def scored_problems(spec: ProbeSpec | DoseSpec | RankSpec) -> Seen:
    """Return the problems and control texts on which `spec` scores gold solutions under its recipe."""
    names = (*spec.problems.subjects, *spec.problems.control_names)
    return Seen(spec.recipe.model, spec.problems, names, spec.split, spec.n, spec.seed)


def remember(kind: str, seen: Seen | None, context: Context) -> None:
    """Record the problems whose numbers were shown, if these can be used for tuning; call it when any were shown."""
    if seen is None or (kind, seen) in context.remembered:
        return
    ids: list[str] = []
    for subject in seen.subjects:
        problems = load_corpus(seen.problems, subject, seen.split)
        ids += [problem.problem_id for problem in asked_problems(problems, subject, seen.n, seen.seed)]
    put_tuned_on(context.store.database, seen.model.id, kind, ids)
    context.remembered.add((kind, seen))


def left_out(spec: BenchSpec, context: Context) -> dict[str, frozenset[str]]:
    """Return the ids of test problems that `spec` must exclude, by subject; empty if it gives no verdict."""
    if spec.split != "test":
        return {}
    found: dict[str, frozenset[str]] = {}
    for subject in spec.subjects:
        test = load_corpus(spec.problems, subject, "test")
        ids = {problem.problem_id for problem in test if problem.subject == subject}
        for_tuning = problem_ids(spec.problems, subject, ("dev", "train"))
        seen = tuned_on(context.store.database, spec.model.id, ids).problem_ids | (ids & for_tuning)
        if seen:
            found[subject] = frozenset(seen)
    return found
