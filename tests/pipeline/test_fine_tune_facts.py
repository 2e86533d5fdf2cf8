"""info, preflight, plan, result and report say when no edit turns the base into the fine-tune."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from stethoscope import pipeline
from stethoscope.cli import main
from stethoscope.judging import arms
from stethoscope.pipeline.context import Context
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import (
    BenchArm,
    BenchPlanSpec,
    BenchSpec,
    EditRecipe,
    InfoSpec,
    PreflightSpec,
    Record,
    TaskVectorRef,
)
from stethoscope.report.document import RunFacts, report_html
from stethoscope.results import BenchPlanResult, BenchResult, InfoResult, PreflightResult


@pytest.fixture
def profile(pico_profile: Profile, pico_tuned_folder: Path, tmp_path: Path) -> Profile:
    """The pico profile with a task vector beside its own: the same fine-tune with a head apart from the embeddings."""
    folder = tmp_path / "untied"
    folder.mkdir()
    for file in pico_tuned_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    untied = TaskVectorRef(name="untied", tuned=str(folder))
    return pico_profile.model_copy(update={"task_vectors": (*pico_profile.task_vectors, untied)})


def asked(spec: Record, context: Context) -> Record:
    return pipeline.run(spec, context, Progress()).result  # type: ignore[arg-type]


def test_info_and_what_is_offered(profile: Profile, context: Context) -> None:
    info = asked(InfoSpec(model=profile.model, saes=None, task_vectors=profile.task_vectors), context)
    assert isinstance(info, InfoResult)
    why = {row.name: row.not_the_fine_tune for row in info.task_vectors}
    assert why.pop("untied") is not None
    assert set(why.values()) == {None}
    for ref in profile.task_vectors:
        recipe = EditRecipe(model=profile.model, task_vector=ref, layers={1: 1.0})  # type: ignore[dict-item]
        found = arms.standard_set(
            recipe, info.ground(ref.name), order=None, diagnosis=None, subject="geometry", top_k=4
        )
        offered = any(arm.name == arms.FINE_TUNE for arm in found.arms)
        assert offered == (ref.name != "untied")
        assert any(arms.FINE_TUNE in note for note in found.notes) == (ref.name == "untied")


def test_preflight(profile: Profile, context: Context) -> None:
    for ref in profile.task_vectors:
        result = asked(PreflightSpec(model=profile.model, task_vector=ref), context)
        assert isinstance(result, PreflightResult)
        (check,) = [check for check in result.checks if check.name == "full fine-tune"]
        assert check.outcome == ("warn" if ref.name == "untied" else "pass")
        assert result.usable


def test_plan_result_and_report(profile: Profile, context: Context) -> None:
    for ref in (profile.task_vectors[0], profile.task_vectors[-1]):
        recipe = EditRecipe(model=profile.model, task_vector=ref, layers={1: 1.0})  # type: ignore[dict-item]
        spec = BenchSpec(
            model=profile.model,
            problems=profile.problems,
            arms=(arms.BASE, BenchArm(name="recipe", recipe=recipe)),
            subjects=("geometry",),
            n=2,
            max_new_tokens=4,
        )
        plan, result = asked(BenchPlanSpec(bench=spec), context), asked(spec, context)
        assert isinstance(plan, BenchPlanResult)
        assert isinstance(result, BenchResult)
        named = {"untied"} & {ref.name}
        assert set(plan.not_the_fine_tune) == set(result.not_the_fine_tune) == named
        page = report_html(result, RunFacts("run", "now", "done"))
        said = [why.replace("’", "&#x27;") for why in result.not_the_fine_tune.values()]
        assert all(page.count(why) > 1 for why in said)  # in the record, and in the text


def test_the_commands_say_it(profile: Profile, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "untied.toml"
    ref, problems = profile.task_vectors[-1], profile.problems
    path.write_text(
        f'[model]\nid = "{profile.model.id}"\n[[task_vectors]]\nname = "untied"\ntuned = "{ref.tuned}"\n'
        f'[problems]\nproblems = "{problems.problems}"\ncontrols = "{problems.controls}"\nshots = "{problems.shots}"\n'
        f"subjects = {list(problems.subjects)}\ncontrol_names = {list(problems.control_names)}\n"
    )
    recipe = str(tmp_path / "r.json")
    assert main(["recipe", "--profile", str(path), "--layers", "1", "--out", recipe]) == 0
    capsys.readouterr()
    for command in (
        ["info", "--profile", str(path)],
        ["preflight", "--profile", str(path), "--task-vector", "untied"],
        ["bench", recipe, "--profile", str(path), "--subjects", "geometry", "--n", "2", "--controls", "--plan"],
    ):
        assert main(command) == 0
        assert "lm_head.weight" in capsys.readouterr().out.replace("\n", " "), command
