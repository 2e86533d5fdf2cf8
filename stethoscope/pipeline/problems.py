"""Use case: are these problems fit for a benchmark? What each subject holds, and which gold answers lm-eval can read.

Where its parser cannot read the gold answer, exact_match knows only "the same text": the answers of every model to such
a problem are graded unparsable unless they are that text. So they are counted before anything is asked.
"""

from stethoscope.minerva.problems import asked_problems
from stethoscope.minerva.sources import SPLITS, load_corpus, problem_ids
from stethoscope.pipeline.context import Context
from stethoscope.progress import Progress
from stethoscope.records import ProblemsSpec
from stethoscope.results import ProblemsResult, ProblemsRow, UnreadGold

GOLDS_AT_ONCE = 64
SHOWN = 20


def run(spec: ProblemsSpec, context: Context, progress: Progress) -> ProblemsResult:
    """Read the problems that a benchmark would ask and count the gold answers that cannot be parsed."""
    places = spec.problems
    asked = {
        name: asked_problems(load_corpus(places, name, spec.split), name, spec.n, spec.seed)
        for name in spec.subjects or places.subjects
    }
    progress.start("Reading gold answers", sum(map(len, asked.values())))
    rows, unread = [], []
    for name, problems in asked.items():
        readable: list[bool] = []
        for start in range(0, len(problems), GOLDS_AT_ONCE):
            part = problems[start : start + GOLDS_AT_ONCE]
            readable += context.graders.read_golds([problem.answer for problem in part], progress=progress)
            progress.advance(len(part))
        failed = [problem for problem, ok in zip(problems, readable, strict=True) if not ok]
        unread += [UnreadGold(subject=name, problem_id=problem.problem_id, gold=problem.answer) for problem in failed]
        elsewhere = problem_ids(places, name, [split for split in SPLITS if split != spec.split])
        shared = sum(problem.problem_id in elsewhere for problem in problems)
        rows.append(ProblemsRow(subject=name, n=len(problems), unread_golds=len(failed), in_other_splits=shared))
    return ProblemsResult(split=spec.split, rows=tuple(rows), unread=tuple(unread[:SHOWN]))
