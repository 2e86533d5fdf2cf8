"""A benchmark with silent, endless or overflowing models, dying graders, a full disk, and visitors."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from stethoscope import pipeline
from stethoscope.delta.patch import _on
from stethoscope.errors import GenerationError, ResourceError
from stethoscope.judging import arms
from stethoscope.minerva import grading
from stethoscope.pipeline import answering
from stethoscope.pipeline.context import Context
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import BenchArm, BenchSpec, EditRecipe, GradeStatus, ModelRef
from stethoscope.results import BenchResult
from stethoscope.store.runs import RunStore


def bench_of(profile: Profile, model: ModelRef | None = None, *chosen: BenchArm, **fields: object) -> BenchSpec:
    defaults = {"subjects": ("geometry",), "n": 6, "max_new_tokens": 5, "batch_size": 4, "block_size": 2}
    return BenchSpec(
        model=model or profile.model, problems=profile.problems, arms=(arms.BASE, *chosen), **(defaults | fields)
    )


def run(spec: BenchSpec, context: Context, progress: Progress | None = None) -> BenchResult:
    result = pipeline.run(spec, context, progress or Progress()).result
    assert isinstance(result, BenchResult)
    return result


def always_token_zero(model: torch.nn.Module) -> None:
    """A final norm with gain 0: all logits are equal, and the first token of the vocabulary is always the likeliest."""
    model.get_parameter("model.norm.weight").fill_(-1.0)


def test_a_model_that_answers_nothing(pico_profile: Profile, context: Context, make_pico: Callable[..., Path]) -> None:
    def mute(model: torch.nn.Module) -> None:
        always_token_zero(model)
        model.generation_config.eos_token_id = [0, 1]  # type: ignore[union-attr]

    result = run(bench_of(pico_profile, ModelRef(id=str(make_pico(mute)))), context)
    assert result.complete
    assert [(item.completion, item.n_tokens, item.truncated) for item in result.items] == [("", 1, False)] * 6
    (row,) = result.arms
    assert (row.no_answer_rate, row.accuracy, row.truncation_rate) == (1.0, 0.0, 0.0)


def test_a_model_that_never_stops(pico_profile: Profile, context: Context, make_pico: Callable[..., Path]) -> None:
    def endless(model: torch.nn.Module) -> None:
        always_token_zero(model)
        model.generation_config.eos_token_id = 1  # type: ignore[union-attr]

    result = run(bench_of(pico_profile, ModelRef(id=str(make_pico(endless))), max_new_tokens=16), context)
    assert result.complete
    assert [(item.n_tokens, item.truncated) for item in result.items] == [(16, True)] * 6
    (row,) = result.arms
    assert (row.truncation_rate, row.accuracy) == (1.0, 0.0)


def test_a_model_whose_logits_are_not_numbers_is_named(
    pico_profile: Profile, context: Context, make_pico: Callable[..., Path]
) -> None:
    def overflows(model: torch.nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if "post_" in name:
                parameter.fill_(3e38)

    tuned = make_pico(overflows)
    broken = pico_profile.task_vector().model_copy(update={"name": "broken", "tuned": str(tuned)})
    layers = dict.fromkeys(range(4), 1.0)
    recipe = EditRecipe(model=pico_profile.model, task_vector=broken, layers=layers, norms=True)
    spec = bench_of(pico_profile, None, BenchArm(name="too much", recipe=recipe))
    with pytest.raises(GenerationError, match="arm too much: the model's predictions are not finite"):
        pipeline.run(spec, context, Progress())
    assert context.store.list_runs()[0].state == "failed"
    assert _on.get(context.load(pico_profile.model, Progress()).model) is None, "the edit is still on"
    assert run(bench_of(pico_profile), context).complete


class AfterBlock(Progress):
    """Calls back once, after the first block."""

    def __init__(self, call: Callable[[], None]) -> None:
        super().__init__()
        self.call = call
        self.looks = 0

    def publish(self, result: object) -> None:
        self.looks += 1
        if self.looks == 1:
            self.call()


def test_graders_that_are_killed_between_blocks_are_replaced(
    pico_profile: Profile, context: Context, tmp_path: Path
) -> None:
    def kill() -> None:
        killed = list(context.graders._children)
        assert killed
        for child in killed:
            child.process.kill()
            child.process.wait()

    result = run(bench_of(pico_profile), context, AfterBlock(kill))
    calm = Context(RunStore(tmp_path / "calm"), device="cpu")
    assert run(bench_of(pico_profile), calm) == result
    calm.close()
    assert {item.grade.exact_match for item in result.items} <= {GradeStatus.INCORRECT, GradeStatus.NO_ANSWER}


def test_without_a_grader_the_finished_blocks_are_kept_and_the_rest_goes_on_later(
    pico_profile: Profile, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = bench_of(pico_profile)

    def lose_it() -> None:
        context._graders = grading.GraderPool()  # one of its own, without a child
        monkeypatch.setattr(grading.sys, "executable", "/bin/false")

    with pytest.raises(ResourceError, match="grader process did not start"):
        run(spec, context, AfterBlock(lose_it))
    assert context.store.list_runs()[0].state == "failed"
    monkeypatch.undo()
    progress = Progress()
    assert run(spec, context, progress).complete
    assert progress.done - progress._skipped == 4
    (child,) = context.graders._children
    assert child.alive()
    context.close()
    assert not child.alive(), "the grader outlives its context"


def test_those_who_wait_pass_between_graded_answers_on_the_bare_base(
    pico_profile: Profile, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "BATCH_ANSWERS", 2)
    seen: list[str] = []
    real = context.graders.grade

    def grade(answers: Sequence[object], **options: object) -> object:
        seen.append(f"grade {len(answers)}")
        return real(answers, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(context.graders, "grade", grade)

    class Waiting(Progress):
        def yield_to_interactive(self) -> None:
            super().yield_to_interactive()
            assert context.loaded is not None
            seen.append("pass, edited" if context.loaded.model in _on else "pass, base")

    recipe = EditRecipe(model=pico_profile.model, task_vector=pico_profile.task_vector(), layers={1: 1.0})
    spec = bench_of(pico_profile, None, BenchArm(name="recipe", recipe=recipe), block_size=6, n=5)
    run(spec, context, Waiting())
    graded = [i for i, what in enumerate(seen) if what.startswith("grade")]
    assert [seen[i] for i in graded] == ["grade 2", "grade 2", "grade 1"] * 2
    assert "pass, edited" in seen
    assert all(seen[i - 1] == "pass, base" for i in graded)
