"""Use case: problems. Counts the problems of each subject and the gold answers that lm-eval can parse.

If lm-eval's parser cannot read a gold answer, exact_match accepts only the same text; all other answers are graded as
unparsable. If it reads only a part or another number, exact_match can accept a wrong answer. Both cases, and repeated
problems, are counted before a benchmark.
"""

from stethoscope.minerva.problems import asked_problems
from stethoscope.minerva.sources import SPLITS, load_corpus, problem_ids, repeats
from stethoscope.pipeline.context import Context
from stethoscope.progress import Progress
from stethoscope.records import GoldReading, ProblemsSpec
from stethoscope.results import ProblemsResult, ProblemsRow, RiskyGold

GOLDS_AT_ONCE = 64
SHOWN = 20


def run(spec: ProblemsSpec, context: Context, progress: Progress) -> ProblemsResult:
    """Read the problems of a benchmark and count the gold answers that cannot be parsed."""
    places = spec.problems
    asked = {
        name: asked_problems(load_corpus(places, name, spec.split), name, spec.n, spec.seed)
        for name in spec.subjects or places.subjects
    }
    progress.start("Reading gold answers", sum(map(len, asked.values())))
    rows, at_risk = [], []
    for name, problems in asked.items():
        readings: list[GoldReading] = []
        for start in range(0, len(problems), GOLDS_AT_ONCE):
            part = problems[start : start + GOLDS_AT_ONCE]
            readings += context.graders.read_golds([problem.answer for problem in part], progress=progress)
            progress.advance(len(part))
        at_risk += [
            RiskyGold(subject=name, problem_id=problem.problem_id, gold=problem.answer, reading=reading)
            for problem, reading in zip(problems, readings, strict=True)
            if reading is not GoldReading.WHOLE
        ]
        elsewhere = problem_ids(places, name, [split for split in SPLITS if split != spec.split])
        copies = [pair for pair in repeats(places, name, spec.split) if pair[0].subject == name]
        rows.append(
            ProblemsRow(
                subject=name,
                n=len(problems),
                unread_golds=readings.count(GoldReading.UNREAD),
                doubtful_golds=readings.count(GoldReading.DOUBTFUL),
                in_other_splits=sum(problem.problem_id in elsewhere for problem in problems),
                repeats=len(copies),
                other_answers=sum(first.answer != copy.answer for first, copy in copies),
            )
        )
    return ProblemsResult(split=spec.split, rows=tuple(rows), at_risk=tuple(at_risk[:SHOWN]))
