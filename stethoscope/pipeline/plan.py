"""Use case: plan of a benchmark. Its problems, the answers already stored, and the speed of earlier benchmarks."""

from stethoscope.minerva.sources import load_corpus
from stethoscope.pipeline.answering import evaluation_id
from stethoscope.pipeline.bench import bench_problems
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.editing import not_the_fine_tunes, reach_of_arms
from stethoscope.pipeline.prompts import Prompt, as_read
from stethoscope.pipeline.rate import answer_rate
from stethoscope.pipeline.tuned_on import left_out
from stethoscope.progress import Progress
from stethoscope.records import BenchPlanSpec, BenchSpec
from stethoscope.results import BenchPlanResult


def run(spec: BenchPlanSpec, context: Context, progress: Progress) -> BenchPlanResult:
    """Return the number of problems by subject, the stored answers by arm, and the speed of earlier benchmarks."""
    bench = spec.bench
    loaded = context.load(bench.model, progress)
    without = left_out(bench, context)
    available = {subject: _available(bench, subject) - len(without.get(subject, ())) for subject in bench.subjects}
    stored: dict[str, int] = {}
    first: Prompt | None = None
    if available and min(available.values()) > 0:
        prompts = context.prompts(bench, bench_problems(bench, without))
        wanted = {(problem_id, prompt.prompt_id) for problem_id, prompt in prompts.items()}
        first = next(iter(prompts.values()))
        for arm in bench.arms:
            evaluation = evaluation_id(bench, arm.recipe, context)
            stored[arm.name] = len(wanted & context.store.stored_answers(evaluation))
    return BenchPlanResult(
        available=available,
        stored=stored,
        first_prompt="" if first is None else as_read(loaded, first),
        first_prompt_tokens=0 if first is None else len(first.token_ids),
        answers_per_s=answer_rate(bench, context),
        reach=reach_of_arms(bench.arms, context, progress),
        not_the_fine_tune=not_the_fine_tunes(bench.arms, context, progress),
    )


def _available(spec: BenchSpec, subject: str) -> int:
    return sum(problem.subject == subject for problem in load_corpus(spec.problems, subject, spec.split))
